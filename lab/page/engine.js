// The page's side of the worker: fetch the model, start the worker, ask it things.
import { Link } from "../worker/messages.js";

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
export const HERE = new URL(".", document.currentScript.src); // the folder of the lab's scripts

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

// gpt2-mini's files, for `Engine.load`; `progress` hears the share that has arrived.
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

export class Engine extends Link {
  // Start the worker with gpt2-mini; `progress` hears the share that has arrived. `relaxed: false` takes the plain
  // kernels. `device`: see `load`.
  static async start(progress = () => {}, { relaxed = true, device } = {}) {
    if (!delivered.source) await script("worker.js");
    const files = await miniFiles(progress);
    const engine = new Engine(delivered.source, relaxed);
    await engine.load(files, { name: "gpt2-mini", device });
    return engine;
  }

  constructor(source, relaxed) {
    super(source);
    this.source = source;
    this.onDevice = () => {}; // the page may set it
    const kernels = Object.entries(delivered.kernels).map(([kind, text]) => [kind, bytesOf(text)]);
    this.kernels = Object.fromEntries(kernels);
    this.relaxed = relaxed && WebAssembly.validate(this.kernels.relaxed);
  }

  // Load a model in place of the one before; its adapters go with it. `files`: {name: Blob, ArrayBuffer or string}, see
  // model_sources.js. `exact`: float32 weights are kept as they are, and take twice the memory. `device`: "webgpu", "wasm",
  // or a GPU if there is one. The engine then has {config, name, megabytes, device, stored, rounded}, where device is
  // {kind, name, why}, see device.js.
  async load(files, { name = null, exact = false, device, news = () => {} } = {}) {
    const wasm = this.relaxed ? this.kernels.relaxed : this.kernels.plain;
    const what = { files, name, wasm, exact, device, prose: delivered.prose, source: this.source };
    Object.assign(this, await this.ask("load", what, { news }));
    this.loaded = { files, name, exact };
  }

  // Another worker with the same model, in place of one that has ended.
  static async inPlaceOf({ source, relaxed, loaded, device }) {
    const engine = new Engine(source, relaxed);
    await engine.load(loaded.files, { ...loaded, device: device?.kind });
    return engine;
  }

  // Move the model to another device, "webgpu" or "wasm"; its adapters stay.
  async moveTo(device) {
    this.device = await this.ask("device", { device });
  }

  // A message with a device says that the GPU was lost: the work goes on there.
  hear(message) {
    if (!message.device) return super.hear(message);
    this.device = message.device;
    return this.onDevice(this.device);
  }
}

Lab.Engine = Engine; // for the tests, and for readers who open the console
