// What tests/lab/test_lab_gpu.py calls. The page has none of it.

import { openSafetensors } from "../files/safetensors.js";
import { modelOn } from "../worker/device.js";
import { findGPU, GPU } from "./gpu.js";
import { GPUModel } from "./model.js";
import { floatToHalf } from "./weights.js";

const opened = {}; // one device for all models with the same precision, so that kernels are compiled once

// A model from a safetensors file in base64.
export async function openModel({ config, weights, half }) {
  opened[half] ??= await GPU.open(await findGPU(), half);
  return GPUModel.on(opened[half], await sourceOf(config, weights), () => {});
}

// Not by `openModel` of files/model_files.js: kernels.c is made for fewer widths than the GPU's kernels.
export async function sourceOf(config, weights) {
  const bytes = Uint8Array.from(atob(weights), letter => letter.charCodeAt(0));
  return { config, ...(await openSafetensors(new Blob([bytes]))) };
}

// {name: {A: [], B: []}} with `shapes` {name: {d, k}} as an adapter, and back.
export function adapterOf({ r, s, layers }) {
  const arrays = ([name, { d, k, A, B }]) => [
    name,
    { d, k, A: Float32Array.from(A), B: Float32Array.from(B) },
  ];
  return { r, s, layers: Object.fromEntries(Object.entries(layers).map(arrays)) };
}

function listed({ layers }) {
  const lists = ([name, { A, B }]) => [name, { A: [...A], B: [...B] }];
  return Object.fromEntries(Object.entries(layers).map(lists));
}

// The logits after each piece of `ids`, by how the adapter is used: {name: view}; a view of null is the base alone.
export async function logitsOf(model, adapter, views, ids, pieces) {
  const loaded = await model.place(adapter);
  const out = {};
  for (const [name, view] of Object.entries(views)) {
    model.use(view && loaded, view ?? undefined);
    model.restart();
    out[name] = [];
    let at = 0;
    for (const length of pieces) {
      out[name].push([...(await model.next(ids.slice(at, at + length)))]);
      at += length;
    }
  }
  model.use(null);
  loaded.free();
  return out;
}

// Losses, gradients of the first step, and the adapter after all steps. The losses of other shapes come in between.
export async function learn(model, adapter, { rows, targets, rate, steps }) {
  const loaded = await model.place(adapter, true);
  model.use(loaded);
  const short = list => list.slice(0, 1).map(row => row.slice(0, 5));
  const alone = [await model.loss(rows, targets), await model.loss(short(rows), short(targets))];
  alone.push(await model.loss([...rows, ...rows], [...targets, ...targets]));
  const losses = [];
  let gradients;
  for (let step = 1; step <= steps; step++) {
    losses.push(await model.step(loaded, rows, targets, { step, rate, most: Infinity }));
    gradients ??= listed(await loaded.read("g"));
  }
  const after = listed(await loaded.read());
  model.use(null);
  loaded.free();
  return { alone, losses, gradients, after };
}

export { findGPU, floatToHalf, GPU, GPUModel, modelOn };
