// The model comes when it is first needed: when the reader changes something, trains, or asks for it.
import { Engine } from "./engine.js";
import { $, lab, say } from "./shared.js";

let loading = null;
const waiting = [];

// `work` is done once, as soon as the model is there.
export function whenLoaded(work) {
  waiting.push(work);
}

// The engine, once it is there. Rejects if loading fails, which the page then says; the next call tries again.
export function ready() {
  loading ??= load().catch(error => {
    loading = null;
    say("status", `The model was not loaded: ${error.message}`, true);
    $("progress").hidden = true;
    $("load").disabled = $("load").hidden = false;
    throw error;
  });
  return loading;
}

async function load() {
  $("load").disabled = true;
  $("load").hidden = true;
  $("progress").hidden = false;
  say("status", "Loading the model: 24 MB, which the browser then keeps …");
  const before = performance.now();
  const engine = await Engine.start(share => {
    $("progress").value = share;
  });
  lab.engine = engine;
  const seconds = (performance.now() - before) / 1000;
  const kernels = engine.relaxed ? "with fused multiply and add" : "with plain SIMD";
  const cost = `after ${seconds.toFixed(1)} s, ${kernels}, in ${Math.round(engine.megabytes)} MB of memory`;
  say("status", `gpt2-mini is ready, ${cost}. It stays in this tab; nothing you type leaves it.`);
  $("progress").hidden = true;
  for (const work of waiting) work();
  return engine;
}
