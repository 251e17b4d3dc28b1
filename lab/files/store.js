// Adapters that stay in this browser, in IndexedDB: what is said of each, and beside it its two files.
import { LabError } from "../errors.js";

const NAME = "lora-book-lab";
const ABOUT = "about"; // {id, title, created, prompt, settings, losses, measured, bytes, …}, by id
const FILES = "files"; // {file name: ArrayBuffer}, by the same id

const READING = 2000; // milliseconds that the page waits for an answer: some browsers never give one
const WRITING = 20_000; // megabytes may be slow

let opening = null;

// The promise's value, or a LabError if it takes longer.
function inTime(promise, ms, doing) {
  let timer;
  const late = new Promise((_, reject) => {
    const error = new LabError(
      `${doing} did not work: the browser's store has not answered for ${ms / 1000} seconds.`,
    );
    timer = setTimeout(() => reject(error), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// The database, opened once. Throws LabError where the browser keeps nothing.
function open() {
  opening ??= new Promise((resolve, reject) => {
    const refused = error => {
      reject(new LabError(`This browser does not let the page keep adapters (${nameOf(error)}).`));
    };
    if (!globalThis.indexedDB) return refused(new Error("it has no IndexedDB"));
    let request;
    try {
      request = indexedDB.open(NAME, 1);
    } catch (error) {
      return refused(error);
    }
    request.onupgradeneeded = () => {
      request.result.createObjectStore(ABOUT, { keyPath: "id" });
      request.result.createObjectStore(FILES);
    };
    request.onerror = () => refused(request.error);
    request.onblocked = () => refused(new Error("another tab has an older version of them open"));
    request.onsuccess = () => {
      const database = request.result;
      database.onversionchange = database.onclose = () => {
        database.close();
        opening = null;
      };
      resolve(database);
    };
  });
  return inTime(opening, READING, "Opening the kept adapters").catch(error => {
    opening = null; // the next question tries again
    throw error;
  });
}

function nameOf(error) {
  return error?.message || error?.name || "no reason given";
}

// Do `work(about, files)` with both stores in one transaction, which is written whole or not at all; what the request
// that `work` returns gives.
async function transact(mode, doing, work, ms = READING) {
  const database = await open();
  const done = new Promise((resolve, reject) => {
    const fail = error => {
      if (error?.name === "ConstraintError") return resolve(false);
      const full = error?.name === "QuotaExceededError";
      const why = full ? "there is no room left for this page: delete one below" : nameOf(error);
      reject(new LabError(`${doing} did not work: ${why}.`));
    };
    try {
      const transaction = database.transaction([ABOUT, FILES], mode);
      const request = work(transaction.objectStore(ABOUT), transaction.objectStore(FILES));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = () => fail(transaction.error ?? request?.error);
    } catch (error) {
      fail(error);
    }
  });
  return inTime(done, ms, doing);
}

// What is said of each kept adapter, the oldest first.
export async function keptAdapters() {
  const all = await transact("readonly", "Reading the kept adapters", about => about.getAll());
  return all.filter(({ bytes }) => bytes).sort((a, b) => a.created - b.created);
}

// Take an id for an adapter that is to come. False if it is taken, by another tab perhaps.
export async function reserve(id) {
  return (await transact("readwrite", "Keeping adapters", abouts => abouts.add({ id }))) !== false;
}

// Keep an adapter, {file name: bytes}, under `about.id`, or in place of an earlier state of it.
export function keep(about, files) {
  const whole = Object.entries(files).map(([name, bytes]) => [name, new Uint8Array(bytes).slice().buffer]);
  const bytes = whole.reduce((total, [, file]) => total + file.byteLength, 0);
  const put = (abouts, allFiles) => {
    abouts.put({ ...about, bytes, created: Date.now() });
    return allFiles.put(Object.fromEntries(whole), about.id);
  };
  return transact("readwrite", `Keeping “${about.title}”`, put, WRITING);
}

// The two files of a kept adapter. Throws LabError if it is gone.
export async function filesOf({ id, title }) {
  const files = await transact("readonly", `Reading “${title}”`, (_, allFiles) => allFiles.get(id));
  if (!files)
    throw new LabError(`“${title}” is no longer kept in this browser: was it deleted in another tab?`);
  return files;
}

export function rename(about, title) {
  return transact("readwrite", `Renaming “${about.title}”`, abouts => abouts.put({ ...about, title }));
}

export function remove({ id, title }) {
  return transact("readwrite", `Deleting “${title}”`, (abouts, allFiles) => {
    abouts.delete(id);
    return allFiles.delete(id);
  });
}
