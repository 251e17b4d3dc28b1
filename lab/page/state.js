// What the parts of the page share: what is chosen and loaded, and who wants to hear of a change. It imports no other
// part of the page.
import { KINDS } from "../model/layers.js";

export const $ = id => document.getElementById(`lab-${id}`);

export const MINI = "gpt2-mini"; // the page's own model

export const lab = {
  engine: null, // once the model is loaded
  model: MINI, // its name
  adapters: new Map(), // those that the worker has: {r, kinds}, by name
  mine: new Map(), // trained or brought in this visit: {r, kinds, files}, by name
  kept: [], // what is said of those that this browser keeps: see files/store.js
  carried: null, // {files, about}: the adapter that the page's address carries
  playing: false, // a recording, until the reader touches something
  training: false,
  left: null, // the name of the adapter that writes on the left, in place of the base
  shown: {}, // texts and bars on the page
  samples: [], // {at, prompt, text} of the last run
  promptIsOurs: true, // until the reader types one
};

// ---- Events ------------------------------------------------------------------------------------------------------

const listeners = { loaded: [], model: [], changed: [] };

// `work` is done whenever a worker has "loaded" the model, another "model" took its place, or what is shown and
// chosen has "changed".
export function on(event, work) {
  listeners[event].push(work);
}

export function tell(event) {
  for (const work of listeners[event]) work();
}

// ---- The adapter that is chosen ----------------------------------------------------------------------------------

const DOOR = "The door opened, and";
const FACTS = "name[The Stone Otter], eatType[wine bar], food[Spanish], familyFriendly[no] =>";
const BOOKS_PROMPTS = { restaurants: FACTS, plays: DOOR, cat: DOOR }; // of the adapters that come with the page
export const BOOKS_ADAPTERS = Object.keys(BOOKS_PROMPTS);
const NONE = { r: 0, kinds: [] }; // a model that has no adapter yet

// An adapter's rank and kinds of layers, if the worker has it or this browser keeps it.
export function adapterNamed(name) {
  if (name === "") return NONE;
  if (name === "carried" && lab.carried) return lab.carried.about;
  const own = lab.adapters.get(name) ?? lab.mine.get(name) ?? lab.kept.find(about => about.id === name);
  return own ?? { r: 8, kinds: KINDS, prompt: BOOKS_PROMPTS[name] };
}

export const chosenAdapter = () => adapterNamed($("adapter").value);

// What the sliders say.
export function view() {
  const checked = checkedKinds("on");
  return {
    adapter: $("adapter").value,
    rank: Number($("rank").value),
    strength: Number($("alpha").value),
    off: KINDS.filter(kind => !checked.includes(kind)),
  };
}

// ---- Small things ------------------------------------------------------------------------------------------------

// Tell the reader; `wrong` in the colour of what went wrong.
export function say(place, text, wrong = false) {
  $(place).textContent = text;
  $(place).classList.toggle("lab-wrong", wrong);
}

const DEVICES = { wasm: "the processor (WebAssembly)", webgpu: "the GPU (WebGPU)" };

export function listDevices() {
  for (const [kind, words] of Object.entries(DEVICES)) $("device").add(new Option(words, kind));
}

// What the model runs on, see `modelOn` in worker/device.js.
export function showDevice({ kind, name, why }) {
  $("device").value = kind;
  say("device-status", `It runs on ${DEVICES[kind]}${name && `: ${name}`}.${why && ` ${why}`}`);
}

export function checkedKinds(fieldset) {
  return [...$(fieldset).querySelectorAll("input:checked")].map(box => box.value);
}

// Put a prompt that shows what an adapter learned into the box, unless the reader has typed one.
export function suggestPrompt(prompt) {
  if (lab.promptIsOurs && prompt) $("prompt").value = prompt;
}

// A slider sends many events. `work` runs once at a time, and once more if it was asked for meanwhile. What went wrong is
// on the page until it works.
export function latest(work) {
  let running = false;
  let again = false;
  let failed = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    while (again) {
      again = false;
      try {
        await work();
        if (failed) say("write-status", "");
        failed = false;
      } catch (error) {
        failed = true;
        say("write-status", error.message, true);
      }
    }
    running = false;
  };
}
