// One end of a worker: questions out, answers and news in.
const PATIENCE = 30_000; // milliseconds in which a worker must have begun
const FORBIDDEN =
  "The browser did not start the lab's worker. The page's security policy, or an extension, may forbid workers: " +
  "open the lab from another site, or as a file.";

export class Link {
  // `source`: the worker's script.
  constructor(source) {
    this.waiting = new Map();
    this.asked = 0;
    this.failed = null; // why the worker did not start
    try {
      this.worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
      this.worker.onmessage = ({ data }) => this.hear(data);
      this.worker.onerror = ({ message }) => this.fail(new Error(message || FORBIDDEN));
      this.worker.onmessageerror = () =>
        this.fail(new Error("The lab's worker sent a message that cannot be read."));
    } catch {
      this.fail(new Error(FORBIDDEN));
    }
    this.patience = setTimeout(() => this.fail(new Error(FORBIDDEN)), PATIENCE);
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

  hear({ ready, id, result, error, news }) {
    if (ready) {
      this.started = true;
      return clearTimeout(this.patience);
    }
    const { resolve, reject, news: listener } = this.waiting.get(id);
    if (news) return listener(news);
    this.waiting.delete(id);
    return error === undefined ? resolve(result) : reject(new Error(error));
  }

  fail(error) {
    clearTimeout(this.patience);
    if (!this.started) this.failed = error;
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }

  end() {
    clearTimeout(this.patience);
    this.worker?.terminate();
  }
}
