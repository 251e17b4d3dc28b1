// The page's side of the worker: fetch the model, start the worker, ask it things.
// The scripts that the book's build made call these. A page that was opened as a file may load scripts and no files.
export const delivered = { weights: [], adapters: {} };
export const Lab = {
  weights(part, text) {
    delivered.weights[part] = bytesOf(text);
  },
  tokens(text) {
    delivered.tokens = text;
  },
  worker(parts) {
    Object.assign(delivered, parts); // {source, kernels, prose, config}
  },
  adapter(name, files) {
    delivered.adapters[name] = Object.fromEntries(
      Object.entries(files).map(([file, text]) => [file, bytesOf(text).buffer]),
    );
  },
};
window.Lab = Lab;

const WEIGHT_PARTS = 8;
const PATIENCE = 30_000; // milliseconds in which a worker must have begun
const FORBIDDEN =
  "The browser did not start the lab's worker. This page's policy, or an extension, may forbid workers: " +
  "open the lab elsewhere, or as a file.";
const HERE = new URL(".", document.currentScript.src); // the folder of the lab's scripts

// VERSIONS has a digest of each script; the build puts it in.
export function script(name) {
  return new Promise((resolve, reject) => {
    const tag = document.createElement("script");
    tag.src = new URL(`${name}?v=${VERSIONS[name]}`, HERE);
    tag.onerror = () => reject(new Error(`${name} could not be loaded: try again when there is a network.`));
    document.head.append(tag);
    tag.onload = () => {
      tag.remove();
      resolve();
    };
  });
}

// Base64 to bytes.
function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
}

// What is missing in this browser, or "" where nothing is.
export function missing() {
  if (typeof WebAssembly === "undefined") return "WebAssembly, which is switched off or not there";
  if (typeof Worker === "undefined") return "web workers";
  // The smallest module with a SIMD instruction: a function that gives four zeros.
  const simd = [
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98,
    11,
  ];
  return WebAssembly.validate(Uint8Array.from(simd))
    ? ""
    : "WebAssembly SIMD, which browsers have since 2021 to 2023";
}

// gpt2-mini's files, for `Engine.load`; `progress` is told the share that is there.
export async function miniFiles(progress = () => {}) {
  if (!delivered.tokens) await script("tokens.js");
  for (let part = 0; part < WEIGHT_PARTS && !delivered.model; part++) {
    if (!delivered.weights[part]) await script(`weights-${part}.js`); // those that came are kept
    progress((part + 1) / WEIGHT_PARTS);
  }
  delivered.model ??= new Blob(delivered.weights);
  delivered.weights = [];
  const { config, tokens, model } = delivered;
  return { "config.json": config, "bpe.tiktoken": tokens, "model.safetensors": model };
}

export class Engine {
  // Start the worker with gpt2-mini; `progress` is told the share that is there. `relaxed: false` takes the plain
  // kernels. `device`: see `load`.
  static async start(progress = () => {}, { relaxed = true, device } = {}) {
    if (!delivered.source) await script("worker.js");
    const files = await miniFiles(progress);
    const engine = new Engine(delivered.source, relaxed);
    await engine.load(files, { name: "gpt2-mini", device });
    return engine;
  }

  constructor(source, relaxed) {
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.waiting = new Map();
    this.asked = 0;
    this.onDevice = () => {}; // the page may set it
    this.failed = null; // why the worker did not start
    try {
      this.worker = new Worker(url);
      this.worker.onmessage = ({ data }) => this.hear(data);
      this.worker.onerror = ({ message }) => this.fail(new Error(message || FORBIDDEN));
      this.worker.onmessageerror = () => this.fail(new Error("The lab's worker sent what cannot be read."));
    } catch {
      this.fail(new Error(FORBIDDEN));
    }
    this.patience = setTimeout(() => this.fail(new Error(FORBIDDEN)), PATIENCE);
    const kernels = Object.entries(delivered.kernels).map(([kind, text]) => [kind, bytesOf(text)]);
    this.kernels = Object.fromEntries(kernels);
    this.relaxed = relaxed && WebAssembly.validate(this.kernels.relaxed);
  }

  // Load a model in place of the one before; its adapters go with it. `files`: {name: Blob, ArrayBuffer or string}, see
  // bring_model.js. `exact`: float32 weights are kept as they are, and take twice the memory. `device`: "webgpu", "wasm",
  // or a GPU if there is one. The engine then has {config, name, megabytes, device, stored, rounded}, where device is
  // {kind, name, why}, see device.js.
  async load(files, { name = null, exact = false, device, news = () => {} } = {}) {
    const wasm = this.relaxed ? this.kernels.relaxed : this.kernels.plain;
    const what = { files, name, wasm, exact, device, prose: delivered.prose };
    Object.assign(this, await this.ask("load", what, { news }));
  }

  // Move the model to another device, "webgpu" or "wasm"; its adapters stay.
  async moveTo(device) {
    this.device = await this.ask("device", { device });
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

  // The worker has started, or the GPU was lost and the work goes on on another `device`, or there is news of a job.
  hear({ ready, device, id, result, error, news }) {
    if (device) {
      this.device = device;
      return this.onDevice(device);
    }
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
}

Lab.Engine = Engine; // for the tests, and for readers who open the console
