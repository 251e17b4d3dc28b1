// Write, and turn: two texts from one prompt, without and with an adapter, and the bars below them.

import { filesOf } from "../files/store.js";
import { delivered, script } from "./engine.js";
import { ready } from "./loading.js";
import { Player, prefersStill } from "./play.js";
import {
  $,
  adapterNamed,
  BOOKS_ADAPTERS,
  chosenAdapter,
  lab,
  latest,
  MINI,
  on,
  say,
  suggestPrompt,
  tell,
  view,
} from "./state.js";
import { made, showBars, Words } from "./words.js";

const SAMPLE_TOKENS = 60;
const BARS = 8; // the likeliest, with or without the adapter

let baseWords;
let adaptedWords;
let lookedAt = null; // the token that was clicked: {words, index}; null is the prompt's end
let player = null; // of a recording, until the reader touches something

// What writes on the left: null is the base.
function leftView() {
  return lab.left && { adapter: lab.left, rank: adapterNamed(lab.left).r, strength: 1, off: [] };
}

export function setRankLimit() {
  const { r } = chosenAdapter();
  $("rank").max = r;
  $("rank").value = r;
}

export function showSliders() {
  $("rank-value").textContent = `${$("rank").value} of ${$("rank").max}`;
  $("alpha-value").textContent = `${Number($("alpha").value).toFixed(2)} × s`;
  $("temperature-value").textContent = $("temperature").value;
  const { kinds } = chosenAdapter();
  for (const box of $("on").querySelectorAll("input")) box.disabled = !kinds.includes(box.value);
}

// The worker gets an adapter when it is first chosen.
const fetching = new Map(); // promises, by name

function fetchAdapter(name) {
  if (!name || lab.adapters.has(name)) return undefined;
  if (!fetching.has(name))
    fetching.set(
      name,
      handOver(name).finally(() => fetching.delete(name)),
    );
  return fetching.get(name);
}

async function handOver(name) {
  const { engine } = lab;
  const adapter = await engine.ask("keep", { name, files: await filesNamed(name) });
  lab.adapters.set(name, { ...adapterNamed(name), ...adapter });
  tell("changed");
}

// An adapter's files: from the page's address, from this browser's store, or one of the book's.
async function filesNamed(name) {
  if (name === "carried") return lab.carried.files;
  if (lab.mine.has(name)) return lab.mine.get(name).files;
  const about = lab.kept.find(({ id }) => id === name);
  if (about) return filesOf(about);
  if (!delivered.adapters[name]) await script(`adapter-${name}.js`);
  return delivered.adapters[name];
}

// ---- What follows a change ---------------------------------------------------------------------------------------

const showNext = latest(async () => {
  const { engine } = lab;
  await fetchBoth();
  const { words, index } = lookedAt ?? {};
  const ids = words ? words.ids.slice(0, index) : [];
  const prompt = words ? words.prompt : $("prompt").value;
  const chosen = words?.ids[index];
  const also = chosen === undefined ? [] : [chosen];
  const what = { view: view(), left: leftView(), prompt, ids, count: BARS, also };
  const rows = await engine.ask("bars", what);
  showNextAfter(prompt + (words ? words.tokens.slice(0, index).join("") : ""), rows, chosen);
  $("next-back").hidden = !words;
  lab.shown.bars = rows;
});

function showNextAfter(before, rows, chosen) {
  showBars($("next"), rows, chosen);
  $("next-after").textContent = `after “${before.length > 60 ? "…" : ""}${before.slice(-60)}”`;
}

async function fetchBoth() {
  if (lab.left) await fetchAdapter(lab.left);
  await fetchAdapter($("adapter").value);
}

// The adapted text, and the one on the left where it is not an answer to the same question already.
const writeTexts = latest(async () => {
  const { engine } = lab;
  await fetchBoth();
  const question = {
    prompt: $("prompt").value,
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
    count: SAMPLE_TOKENS,
    left: leftView(),
  };
  const asked = JSON.stringify([lab.model, question]);
  const base = asked !== lab.shown.asked;
  const shown = { view: view(), ...question };
  const show = texts => {
    if (texts.ordering)
      say("write-status", `The adapter's directions are put in order: ${texts.ordering} layers.`);
    if (texts.base) baseWords.show(question.prompt, texts.base);
    if (texts.adapted) adaptedWords.show(question.prompt, texts.adapted);
  };
  const texts = await engine.ask("write", { base, ...shown }, { news: show });
  show(texts);
  Object.assign(lab.shown, shown, texts, { asked });
  say("write-status", "");
});

// The sliders have moved: bars and text follow at once.
export function changed() {
  showSliders();
  tell("changed");
  if (!lab.engine) return;
  if (lookedAt?.words === adaptedWords) lookedAt = null; // that text is about to change
  showNext();
  writeTexts();
}

// The reader has changed something: the recording makes way, and the model is loaded if it is not there.
export function touched() {
  stopPlaying();
  changed();
  wake();
}

// Load the model if it is not there.
export function wake() {
  if (!lab.engine) ready().catch(() => {}); // the page says what went wrong
}

function lookAt(place) {
  lookedAt = place;
  for (const words of [baseWords, adaptedWords]) words.mark(words === place?.words ? place.index : -1);
  if (lab.engine) showNext();
  else touched();
}

export function prepareWriting() {
  on("loaded", startWriting);
  on("model", modelChanged);
  baseWords = new Words($("base"), index => lookAt({ words: baseWords, index }));
  adaptedWords = new Words($("adapted"), index => lookAt({ words: adaptedWords, index }));
  $("next-back").addEventListener("click", () => lookAt(null));
  $("form").addEventListener("submit", event => {
    event.preventDefault();
    lookedAt = null;
    touched();
  });
  $("adapter").addEventListener("input", () => {
    setRankLimit();
    suggestPrompt(chosenAdapter().prompt);
  });
  for (const id of ["adapter", "rank", "alpha", "on", "temperature", "seed"]) {
    $(id).addEventListener("input", touched);
  }
  $("prompt").addEventListener("input", () => {
    lab.promptIsOurs = false;
    lookAt(null);
  });
}

// An adapter becomes the one on the right, as it was trained.
export function chooseAdapter(name) {
  stopPlaying();
  $("adapter").value = name;
  setRankLimit();
  $("alpha").value = 1;
  suggestPrompt(chosenAdapter().prompt);
  changed();
}

// An adapter writes on the left from now on, or with null the base.
export function setLeft(name, title) {
  lab.left = name;
  $("base-title").textContent = name ? title : `Base: ${lab.model} as it is`;
  $("base-title").classList.toggle("lab-is-left", Boolean(name));
}

// An adapter that the reader trained or brought can be chosen from now on. Where it is chosen already, it has changed.
// Its `files` are kept for another worker, if the one that has it ends.
export function offerAdapter({ name, r, kinds, prompt, alpha }, text, files = null) {
  const about = { r, kinds, prompt, alpha };
  showOption(name, text);
  if (lab.engine) lab.adapters.set(name, about);
  if (files) lab.mine.set(name, { ...about, files });
  if ($("adapter").value === name) changed();
}

let booksOptions = []; // of the adapters that fit gpt2-mini

// Another model is loaded: the worker has no adapter now, and those of the model before cannot be chosen.
function modelChanged() {
  lab.adapters.clear();
  lab.mine.clear();
  lab.shown = {};
  lookedAt = null;
  setLeft(null);
  if (!booksOptions.length)
    booksOptions = [...$("adapter").options].filter(({ value }) => BOOKS_ADAPTERS.includes(value));
  const none = Object.assign(document.createElement("option"), {
    value: "",
    textContent: "none yet: train one",
  });
  $("adapter").replaceChildren(...(lab.model === MINI ? booksOptions : [none]));
  $("adapter").selectedIndex = 0;
  setRankLimit();
  changed();
}

// A button that leads from anywhere on the page to the two texts.
export function wayUp() {
  const button = made("button", { type: "button", className: "lab-way", textContent: "See it write" });
  button.addEventListener("click", () => {
    document.getElementById("lab").scrollIntoView({ behavior: prefersStill() ? "auto" : "smooth" });
    $("prompt").focus({ preventScroll: true });
  });
  return button;
}

export function showOption(name, text) {
  const known = [...$("adapter").options].find(option => option.value === name);
  const option = known ?? $("adapter").appendChild(document.createElement("option"));
  option.value = name;
  option.textContent = text;
}

// ---- The recording -----------------------------------------------------------------------------------------------

// The model is there: replace what was recorded.
function startWriting() {
  stopPlaying();
  changed();
}

// Play `recorded`: {prompt, base, scenes: [{view, adapted, bars}]}, until the reader touches something. Where they want
// no motion, its first scene stands there.
export function playRecorded({ prompt, base, scenes }) {
  lab.playing = true;
  $("prompt").value = prompt;
  baseWords.show(prompt, base);
  const enter = ({ view: turnedTo, bars }) => {
    setControls(turnedTo);
    showNextAfter(prompt, bars);
  };
  const show = ({ adapted: { tokens, ids } }, count) => {
    adaptedWords.show(prompt, { tokens: tokens.slice(0, count), ids: ids.slice(0, count) });
  };
  player = new Player(scenes, { enter, show, changed: showPlaying });
  $("play").hidden = scenes.length === 1;
  if (prefersStill()) player.finish();
  else player.play();
  showPlaying();
}

// Recorded texts for what the address says: of the chosen adapter, at the rank that is nearest to the slider's.
export function showStill(recordings) {
  const { adapter, rank } = view();
  const of = ({ scenes }) => scenes.filter(({ view: seen }) => seen.adapter === adapter);
  const { prompt, base, scenes } = recordings.find(one => of(one).length) ?? recordings[0];
  const far = ({ view: seen }) => (seen.adapter === adapter ? Math.abs(seen.rank - rank) : Infinity);
  const scene = scenes.reduce((best, one) => (far(one) < far(best) ? one : best));
  baseWords.show(prompt, base);
  adaptedWords.show(prompt, scene.adapted);
  showNextAfter(prompt, scene.bars);
}

function setControls({ adapter, rank, strength }) {
  $("adapter").value = adapter;
  setRankLimit();
  $("rank").value = rank;
  $("alpha").value = strength;
  showSliders();
  tell("changed");
}

function showPlaying() {
  $("play").textContent = player?.playing ? "Pause" : "Play";
}

export function preparePlaying() {
  $("play").addEventListener("click", () => (player.playing ? player.pause() : player.play()));
  // The keyboard or a finger has come to a control: it must not move under them.
  $("form").addEventListener("focusin", ({ target }) => {
    if (target !== $("play")) player?.pause();
  });
}

function stopPlaying() {
  player?.finish();
  player = null;
  lab.playing = false;
  $("play").hidden = true;
}
