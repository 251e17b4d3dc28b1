// Where the model is computed: on the reader's GPU, or on the processor.

import { CPUModel } from "../cpu/model.js";
import { LabError } from "../errors.js";
import { findGPU } from "../gpu/gpu.js";
import { GPUModel } from "../gpu/model.js";

// The model on the device that is wanted, "webgpu" or "wasm". Undefined takes a GPU if the browser offers a real one
// that is large enough, and WebAssembly if not. `made`: {source, wasm, exact, name}, see `Model`.
// model.device is {kind, name, why}: the name of the GPU, or why there is none, in a sentence.
export async function modelOn(wanted, made, news = () => {}) {
  const model = await load(wanted, made, news);
  return Object.assign(model, { name: made.name });
}

async function load(wanted, made, news) {
  if (wanted && wanted !== "webgpu" && wanted !== "wasm") {
    throw new LabError(`The device must be "webgpu" or "wasm", not ${JSON.stringify(wanted)}.`);
  }
  if (wanted === "wasm") return onProcessor(made, news, "");
  try {
    return await onGPU(made, news, wanted === "webgpu");
  } catch (error) {
    if (wanted) throw error;
    return onProcessor(made, news, error.message);
  }
}

async function onProcessor({ source, ...how }, news, why) {
  const model = await CPUModel.load(source, how, news);
  return Object.assign(model, { device: { kind: "wasm", name: "", why } });
}

async function onGPU({ source, exact }, news, evenSimulated) {
  const found = await findGPU();
  if (found.simulated && !evenSimulated) {
    throw new LabError("This browser offers only a simulated GPU, which is slower than WebAssembly.");
  }
  const model = await GPUModel.load(source, { exact, found }, news);
  return Object.assign(model, { device: { kind: "webgpu", name: found.name, why: "" } });
}
