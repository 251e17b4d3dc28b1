// Write, and turn: two texts from one prompt, without and with an adapter, and the bars below them.
import { addressOfSettings, writeAddress } from "./address.js";
import { delivered, script } from "./engine.js";
import { KINDS } from "./layers.js";
import { $, checkedKinds, lab, latest, say } from "./shared.js";
import { takingChanged } from "./take_home.js";
import { showBars, Words } from "./words.js";

const SAMPLE_TOKENS = 60;
const BARS = 8; // the likeliest, with or without the adapter

let baseWords;
let adaptedWords;
let lookedAt = null; // the token that was clicked: {words, index}; null is the prompt's end

const BOOKS_OWN = { r: 8, kinds: KINDS }; // the adapters that come with the page

// The chosen adapter's rank and kinds of layers.
function chosenAdapter() {
  return lab.adapters.get($("adapter").value) ?? BOOKS_OWN;
}

// What the sliders say.
export function view() {
  const on = checkedKinds("on");
  return {
    adapter: $("adapter").value,
    rank: Number($("rank").value),
    strength: Number($("alpha").value),
    off: KINDS.filter(kind => !on.includes(kind)),
  };
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

// The worker gets an adapter of the book when it is first chosen.
const fetching = new Map(); // promises, by name

function fetchAdapter(name) {
  if (lab.adapters.has(name)) return undefined;
  if (!fetching.has(name))
    fetching.set(
      name,
      handOver(name).finally(() => fetching.delete(name)),
    );
  return fetching.get(name);
}

async function handOver(name) {
  if (!delivered.adapters[name]) await script(`adapter-${name}.js`);
  lab.adapters.set(name, await lab.engine.ask("keep", { name, files: delivered.adapters[name] }));
  takingChanged();
}

// ---- What follows a change ---------------------------------------------------------------------------------------

const showNext = latest(async () => {
  await fetchAdapter($("adapter").value);
  const { words, index } = lookedAt ?? {};
  const ids = words ? words.ids.slice(0, index) : [];
  const prompt = words ? words.prompt : $("prompt").value;
  const chosen = words?.ids[index];
  const also = chosen === undefined ? [] : [chosen];
  const rows = await lab.engine.ask("bars", { view: view(), prompt, ids, count: BARS, also });
  showNextAfter(prompt + (words ? words.tokens.slice(0, index).join("") : ""), rows, chosen);
  $("next-back").hidden = !words;
  lab.shown.bars = rows;
});

function showNextAfter(before, rows, chosen) {
  showBars($("next"), rows, chosen);
  $("next-after").textContent = `After “${before.length > 60 ? "…" : ""}${before.slice(-60)}”`;
}

// The adapted text, and the base's where it is not an answer to the same question already.
const writeTexts = latest(async () => {
  await fetchAdapter($("adapter").value);
  const question = {
    prompt: $("prompt").value,
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
    count: SAMPLE_TOKENS,
  };
  const base = Object.keys(question).some(name => question[name] !== lab.shown[name]);
  const shown = { view: view(), ...question };
  const show = texts => {
    if (texts.base) baseWords.show(question.prompt, texts.base);
    if (texts.adapted) adaptedWords.show(question.prompt, texts.adapted);
  };
  const texts = await lab.engine.ask("write", { base, ...shown }, { news: show });
  show(texts);
  Object.assign(lab.shown, shown, texts);
  say("write-status", "");
});

// The sliders have moved: bars and text follow at once.
export function changed() {
  showSliders();
  writeAddress();
  takingChanged();
  if (!lab.engine) return;
  if (lookedAt?.words === adaptedWords) lookedAt = null; // that text is about to change
  showNext();
  writeTexts();
}

function lookAt(place) {
  lookedAt = place;
  for (const words of [baseWords, adaptedWords]) words.mark(words === place?.words ? place.index : -1);
  if (lab.engine) showNext();
}

export function prepareWriting() {
  baseWords = new Words($("base"), index => lookAt({ words: baseWords, index }));
  adaptedWords = new Words($("adapted"), index => lookAt({ words: adaptedWords, index }));
  $("next-back").addEventListener("click", () => lookAt(null));
  $("form").addEventListener("submit", event => {
    event.preventDefault();
    lookedAt = null;
    changed();
  });
  $("adapter").addEventListener("input", setRankLimit);
  for (const id of ["adapter", "rank", "alpha", "on", "temperature", "seed"]) {
    $(id).addEventListener("input", changed);
  }
  $("prompt").addEventListener("input", () => {
    takingChanged(); // the lines in Python begin with the prompt
    lookAt(null);
  });
  $("share").addEventListener("click", async () => {
    const link = addressOfSettings();
    try {
      await navigator.clipboard.writeText(link);
      say("shared", "Copied.");
    } catch {
      say("shared", `This browser does not let the page copy it: ${link}`);
    }
  });
}

// The model has come: what was recorded gives way to the real thing.
export function startWriting() {
  $("recorded-write").hidden = true;
  changed();
}

// Texts and bars of an earlier visit, until the reader's own take their place.
export function showRecordedTexts(recorded) {
  if (!recorded) return;
  const { prompt, base, adapted, bars, view: turnedTo } = recorded;
  baseWords.show(prompt, base);
  adaptedWords.show(prompt, adapted);
  showNextAfter(prompt, bars);
  $("recorded-write").textContent =
    `Recorded earlier, with the adapter “${turnedTo.adapter}” at rank ${turnedTo.rank}. Load the model, and it is yours to change.`;
}
