// Your adapters: those that stay in this browser. Use, rename, compare two, delete.

import { keep, keptAdapters, remove, rename } from "../files/store.js";
import { showRuns } from "./runs.js";
import { $, BOOKS_ADAPTERS, lab, on, say, view } from "./state.js";
import { made } from "./words.js";
import { changed, chooseAdapter, setLeft, showOption, wake } from "./write.js";

const MOST_LETTERS = 60; // of a name

let used = 0; // numbers of runs that this visit has given out
let ticked = []; // ids, at most two

// "run-3": a name that no kept adapter and no run of this visit has.
export function nextRun() {
  const numbers = lab.kept.map(({ id }) => Number(/^run-(\d+)/.exec(id)?.[1] ?? 0));
  used = Math.max(used, ...numbers) + 1;
  return `run-${used}`;
}

// Read what is kept, and show it. Where the browser keeps nothing, the page says so and goes on without.
export async function readKept() {
  try {
    lab.kept = await keptAdapters();
    const none = "No adapters yet: those that you train stay here.";
    say("kept-status", lab.kept.length ? "" : none);
  } catch (error) {
    say(
      "kept-status",
      `${error.message} What you train is gone when you close this page: download it.`,
      true,
    );
  }
  showKept();
}

// Keep a run's adapter, with its settings and curves.
export async function keepAdapter({ name, title, settings, losses, measured, best, steps }) {
  const { text, ...said } = settings; // the text stays where it is: only the adapter is kept
  await keepWhole({ id: name, title, ...said, losses, measured, best, steps });
}

// Keep an adapter that the worker has under `about.id`, as it was trained.
export async function keepWhole(about) {
  try {
    const whole = { adapter: about.id, rank: about.r, strength: 1, off: [] };
    const files = await filesInMemory(whole);
    const bytes = Object.values(files).reduce((total, file) => total + file.byteLength, 0);
    await keep({ ...about, model: lab.model, bytes, created: Date.now() }, files);
    await readKept();
    say("kept-status", `“${about.title}” is kept in this browser.`);
  } catch (error) {
    say("kept-status", `${error.message} It is gone when you close this page: download it.`, true);
  }
  offerKeeping();
}

// {file name: ArrayBuffer} of an adapter that the worker has.
async function filesInMemory(shown) {
  const files = Object.entries(await lab.engine.ask("files", { view: shown }));
  return Object.fromEntries(files.map(([name, bytes]) => [name, bytes.slice().buffer]));
}

// The adapter on the right can be kept if it is neither the book's nor kept already.
function offerKeeping() {
  const { adapter } = view();
  const known = !adapter || BOOKS_ADAPTERS.includes(adapter) || lab.kept.some(({ id }) => id === adapter);
  $("keep").disabled = known || !lab.adapters.has(adapter);
}

async function keepChosen() {
  const { adapter } = view();
  const { r, kinds, prompt, alpha } = lab.adapters.get(adapter);
  const title = $("adapter")
    .selectedOptions[0].textContent.replace(/^[^:]*: /, "")
    .slice(0, MOST_LETTERS);
  const id = `kept-${Date.now().toString(36)}`;
  const files = await filesInMemory({ adapter, rank: r, strength: 1, off: [] });
  lab.adapters.set(id, await lab.engine.ask("keep", { name: id, files }));
  await keepWhole({ id, title, r, kinds, prompt, alpha, losses: [], measured: [] });
  if (lab.kept.some(about => about.id === id)) chooseAdapter(id);
}

// ---- The table ---------------------------------------------------------------------------------------------------

// Whether the model that is loaded is the one that an adapter was trained on.
const fits = about => about.model === lab.model;

function showKept() {
  ticked = ticked.filter(id => lab.kept.some(about => about.id === id));
  for (const about of lab.kept.filter(fits)) showOption(about.id, `yours: ${about.title}`);
  $("kept").hidden = !lab.kept.length;
  $("kept").tBodies[0].replaceChildren(...lab.kept.map(row));
  $("compare").disabled = ticked.length !== 2;
}

function row(about) {
  const disabled = !fits(about);
  const tick = made("input", { type: "checkbox", checked: ticked.includes(about.id), disabled });
  tick.setAttribute("aria-label", `Compare ${about.title}`);
  tick.addEventListener("change", () => tickOne(about.id, tick.checked));
  const name = made("input", { type: "text", value: about.title, maxLength: MOST_LETTERS, size: 24 });
  name.setAttribute("aria-label", `Name of ${about.title}`);
  name.addEventListener("change", () => renameTo(about, name.value.trim()));
  const cells = [settingsOf(about), curveOf(about), `${Math.round(about.bytes / 1000)} kB`];
  return made(
    "tr",
    {},
    made("td", {}, tick),
    made("th", { scope: "row" }, name),
    ...cells.map(textContent => made("td", { textContent })),
    made(
      "td",
      {},
      disabled ? `for ${about.model} ` : button("Use", () => useOne(about)),
      deleteButton(about),
    ),
  );
}

function settingsOf({ r, alpha, rate, steps, best, kinds }) {
  const run = steps === undefined ? "" : `, rate ${rate}, ${best || steps} of ${steps} steps`;
  return `r ${r}, α ${alpha ?? "?"}${run}, ${kinds.length === 4 ? "all layers" : kinds.join(", ")}`;
}

function curveOf({ measured, best }) {
  if (!measured.length) return "–";
  const kept = measured.find(({ at }) => at === best) ?? measured.at(-1);
  return `${measured[0].heldOut.toFixed(2)} → ${kept.heldOut.toFixed(2)}`;
}

function button(textContent, work) {
  const element = made("button", { type: "button", textContent });
  element.addEventListener("click", work);
  return element;
}

// The first click asks, the second deletes.
function deleteButton(about) {
  const ask = button("Delete", async () => {
    if (ask.textContent === "Delete") {
      ask.textContent = "Really delete?";
      return;
    }
    await andSay(`“${about.title}” is deleted.`, () => remove(about));
  });
  ask.addEventListener("blur", () => {
    ask.textContent = "Delete";
  });
  return ask;
}

function renameTo(about, title) {
  if (!title) return andSay("", () => {}); // an empty name: the old one comes back
  return andSay(`Renamed to “${title}”.`, () => rename(about, title));
}

// Change what is kept, read it again, and say what happened.
async function andSay(words, work) {
  try {
    await work();
    await readKept();
    if (words) say("kept-status", words);
  } catch (error) {
    say("kept-status", error.message, true);
  }
}

function useOne({ id }) {
  chooseAdapter(id);
  wake();
  document.getElementById("lab").scrollIntoView();
}

// ---- Compare two -------------------------------------------------------------------------------------------------

function tickOne(id, on) {
  ticked = ticked.filter(other => other !== id);
  if (on) ticked = [...ticked.slice(-1), id]; // a third one takes the place of the first
  showKept();
}

function compare() {
  const [left, right] = ticked.map(id => lab.kept.find(about => about.id === id));
  setLeft(left.id, left.title);
  chooseAdapter(right.id);
  wake();
  $("compare-end").hidden = false;
  showRuns([left, right].filter(({ losses }) => losses.length).map(asRun));
  say("kept-status", `Above, “${left.title}” writes on the left and “${right.title}” on the right.`);
}

const asRun = about => ({ ...about, name: "kept", settings: about });

function endCompare() {
  setLeft(null);
  $("compare-end").hidden = true;
  say("kept-status", "The base writes on the left again.");
  changed();
}

export function prepareKept() {
  on("model", showKept);
  on("changed", offerKeeping);
  $("compare").addEventListener("click", compare);
  $("compare-end").addEventListener("click", endCompare);
  $("keep").addEventListener("click", keepChosen);
  return readKept();
}
