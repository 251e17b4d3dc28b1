// The model comes when it is first needed: when the reader changes something, trains, or asks for it.
import { Engine } from "./engine.js";
import { $, lab, say, tell } from "./state.js";

let loading = null;
let lost = null; // the engine whose worker has ended
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
  const before = performance.now();
  const engine = await (lost ? Engine.inPlaceOf(lost) : firstEngine());
  lost = null;
  engine.onEnd = error => replace(engine, error);
  lab.engine = engine;
  const seconds = (performance.now() - before) / 1000;
  const on = engine.device?.kind === "webgpu" ? "on the GPU" : "on the processor";
  const cost = `after ${seconds.toFixed(1)} s, ${on}, in ${Math.round(engine.megabytes)} MB of memory`;
  say("status", `${lab.model} is ready, ${cost}. It stays in this tab; nothing you type leaves it.`);
  $("progress").hidden = true;
  tell("loaded");
  return engine;
}

function firstEngine() {
  $("progress").hidden = false;
  const show = share => {
    $("progress").value = share;
    const so = share < 1 ? `${Math.round(25 * share)} of 25 MB are here` : "the model is starting";
    say("status", `Loading the model, which the browser then keeps: ${so} …`);
  };
  show(0);
  return Engine.start(show, { device: wanted });
}

// The worker has ended: start another one with the same model. It gets adapters when they are chosen.
function replace(engine, error) {
  if (lab.engine !== engine) return;
  lost = engine;
  loading = lab.engine = null;
  lab.adapters.clear();
  lab.shown = {};
  say("status", `${error.message} Another one is starting …`, true);
  ready().catch(() => {}); // the page says what went wrong
}
