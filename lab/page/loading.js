// The model comes when it is first needed: when the reader changes something, trains, or asks for it.
import { Engine } from "./engine.js";
import { $, lab, say, tell } from "./state.js";

const SOON = 20_000; // milliseconds in which the end of a worker follows from its work
const MOST_DEATHS = 3;

let loading = null;
let lost = null; // the engine whose worker has ended
let began = 0; // when the last worker was ready
let deaths = 0; // of workers, one soon after the other
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
  began = performance.now();
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

// The worker has ended: start another one with the same model. It gets adapters when they are chosen. Where one after the
// other ends, the reader has to say when to go on.
function replace(engine, error) {
  if (lab.engine !== engine) return;
  lost = engine;
  loading = lab.engine = null;
  lab.adapters.clear();
  lab.shown = {};
  deaths = performance.now() - began < SOON ? deaths + 1 : 1;
  if (deaths > MOST_DEATHS) {
    say("status", `${error.message} Close other tabs, then load the model again.`, true);
    $("load").disabled = $("load").hidden = false;
    deaths = 0;
    return;
  }
  say("status", `${error.message} Another one is starting …`, true);
  ready().catch(() => {}); // the page says what went wrong
}
