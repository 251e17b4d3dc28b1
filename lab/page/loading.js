// The model comes when it is first needed: when the reader changes something, trains, or asks for it.
import { Engine } from "./engine.js";
import { $, lab, say, tell } from "./state.js";

let loading = null;
let wanted; // the device that the reader chose; undefined leaves the choice to the page

// Where the model is to run, before it is loaded: "wasm" or "webgpu".
export function wantDevice(device) {
  wanted = device;
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
  say("status", "Loading the model: 25 MB, which the browser then keeps …");
  const before = performance.now();
  const show = share => {
    $("progress").value = share;
  };
  const engine = await Engine.start(show, { device: wanted });
  lab.engine = engine;
  const seconds = (performance.now() - before) / 1000;
  const on = engine.device?.kind === "webgpu" ? "on the GPU" : "on the processor";
  const cost = `after ${seconds.toFixed(1)} s, ${on}, in ${Math.round(engine.megabytes)} MB of memory`;
  say("status", `gpt2-mini is ready, ${cost}. It stays in this tab; nothing you type leaves it.`);
  $("progress").hidden = true;
  tell("loaded");
  return engine;
}
