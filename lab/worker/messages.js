// Both ends of a worker. The page, or a worker that has helpers, asks {id, job, …}; the answer is {id, result} or
// {id, error}, and before it perhaps some {id, news}. An end that waits for an answer notices if the worker is gone or
// says nothing any more.
import { LabError } from "../errors.js";

const PATIENCE = 30_000; // milliseconds in which a worker must have begun
const SILENT = 4; // seconds without a word after which a worker counts as stuck
const LONG = 90; // seconds that work may take of which nobody knows how long it takes on this machine
const FORBIDDEN =
  "The browser did not start the lab's worker. The page's security policy, or an extension, may forbid workers: " +
  "open the lab from another site, or as a file.";
const GONE = "The browser has ended the lab's worker, perhaps because memory ran out.";
const STUCK = "The lab's worker no longer answers.";

// The end that asks.
export class Link {
  // `source`: the worker's script.
  constructor(source) {
    this.waiting = new Map();
    this.asked = 0;
    this.failed = null; // why the worker is of no more use
    this.onEnd = () => {}; // hears that
    Object.assign(this, { quiet: 0, limit: SILENT, allowed: 0 }); // seconds, see `tick`
    this.patience = setTimeout(() => this.fail(new LabError(FORBIDDEN)), PATIENCE);
    this.clock = setInterval(() => this.tick(), 1000);
    try {
      this.worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
      this.worker.onmessage = ({ data }) => this.hear(data);
      this.worker.onerror = ({ message }) => this.fail(new LabError(message || FORBIDDEN));
      this.worker.onmessageerror = () =>
        this.fail(new LabError("The lab's worker sent a message that cannot be read."));
    } catch {
      this.fail(new LabError(FORBIDDEN));
    }
  }

  // The worker's answer to a job; `news` hears what it tells on the way.
  ask(job, what = {}, { news = () => {}, move = [] } = {}) {
    const id = ++this.asked;
    return new Promise((resolve, reject) => {
      if (this.failed) return reject(this.failed);
      this.waiting.set(id, { resolve, reject, news });
      this.worker.postMessage({ id, job, ...what }, move);
    });
  }

  hear({ ready, held, busy, id, result, error, news }) {
    this.limit = Math.max(this.limit, 3 * this.quiet); // on a slow machine a step takes long
    this.quiet = 0;
    this.allowed = busy ?? 0;
    if (ready) return this.begin();
    if (held) return this.waitForEnd(held);
    if (!this.waiting.has(id)) return;
    const { resolve, reject, news: listener } = this.waiting.get(id);
    if (news) return listener(news);
    this.waiting.delete(id);
    return error === undefined ? resolve(result) : reject(new LabError(error));
  }

  begin() {
    this.started = true;
    clearTimeout(this.patience);
    this.worker.postMessage({ hold: `lora-book-lab ${crypto.getRandomValues(new Uint32Array(4))}` });
  }

  // The worker holds this lock for as long as it lives, so the page gets it when the worker is gone.
  async waitForEnd(lock) {
    await navigator.locks.request(lock, () => {});
    this.fail(new LabError(GONE));
  }

  // Once a second. A worker that computes answers no ping, so the longest silence so far sets the limit. Seconds are
  // counted here and not by the clock: a machine that slept, or a page that was frozen, is not a silent worker.
  tick() {
    if (!this.started || !this.waiting.size) {
      this.quiet = 0;
      return;
    }
    this.quiet++;
    if (this.quiet > Math.max(this.limit, this.allowed)) this.fail(new LabError(STUCK));
    else this.worker.postMessage({ ping: true });
  }

  fail(error) {
    if (this.failed) return;
    this.end(error);
    this.onEnd(error);
  }

  end(error = new LabError("The lab has ended this worker.")) {
    this.failed ??= error;
    clearTimeout(this.patience);
    clearInterval(this.clock);
    this.worker?.terminate();
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }
}

// The end that answers, in the worker: `jobs` by name.
export function answer(jobs) {
  self.onmessage = async ({ data: { ping, hold, id, job, ...what } }) => {
    if (ping) return postMessage({ pong: true });
    if (hold) return keepLock(hold);
    try {
      const news = told => postMessage({ id, news: told });
      return postMessage({ id, result: await jobs[job](what, news) });
    } catch (error) {
      const own = error instanceof LabError ? "" : "An error in the lab itself: ";
      return postMessage({ id, error: `${own}${error.message}` });
    }
  };
  postMessage({ ready: true });
}

// Without locks, only silence tells that a worker is gone.
function keepLock(lock) {
  navigator.locks
    ?.request(lock, () => {
      postMessage({ held: lock });
      return new Promise(() => {});
    })
    .catch(() => {});
}

// Said before work during which no message comes in, the first time that it is done on this machine.
export function mayTakeLong() {
  postMessage({ busy: LONG });
}
