// Your adapters: those that stay in this browser. Use, rename, compare two, delete.

import { keep, keptAdapters, remove, rename, reserve } from "../files/store.js";
import { crc32 } from "../files/zip.js";
import { ready } from "./loading.js";
import { showRuns } from "./runs.js";
import { $, BOOKS_ADAPTERS, lab, on, say, view } from "./state.js";
import { made } from "./words.js";
import { changed, chooseAdapter, setLeft, showOption, wake } from "./write.js";

const MOST_LETTERS = 60; // of a name

let used = 0; // numbers of runs that this visit has given out
let ticked = []; // ids, at most two

// "run-3": a name that no kept adapter and no run of another tab has.
export async function nextRun() {
  const numbers = lab.kept.map(({ id }) => Number(/^run-(\d+)/.exec(id)?.[1] ?? 0));
  used = Math.max(used, ...numbers) + 1;
  const name = `run-${used}`;
  const free = await reserve(name).catch(() => true); // a browser that keeps nothing has no other
  return free ? name : nextRun();
}

// Read what is kept, and show it. Where the browser keeps nothing, the page says so and goes on without.
async function readKept() {
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

// What is said of a run's adapter; `unfinished` while it goes on, or where it was cut short.
function aboutRun({ name, title, settings, losses, measured, best }, unfinished) {
  const { text, ...said } = settings; // the text stays where it is: only the adapter is kept
  const about = { id: name, title, ...said, losses, measured, best, unfinished };
  return { ...about, textSum: crc32(new TextEncoder().encode(text)) };
}

// Keep the adapter that a run has so far, in place of the one before: all that a crash or a closed tab can cost is what
// was learned since then.
export function keepProgress(run) {
  return keepWhole(aboutRun(run, true), run.files[run.name], () => {});
}

// Keep a run's adapter, with its settings and curves.
export function keepRun(run) {
  return keepWhole(aboutRun(run, Boolean(run.ended)), run.files[run.name]);
}

// A run that learned nothing gives its name back.
export function forgetRun({ name, title }) {
  remove({ id: name, title }).catch(() => {});
}

// Keep an adapter, as it was trained, under `about.id`.
export async function keepWhole(about, files, done = readKept) {
  try {
    await keep({ ...about, model: lab.model }, files);
    await done();
    say("kept-status", `“${about.title}” is kept in this browser.`);
  } catch (error) {
    say("kept-status", `${error.message} It is gone when you close this page: download it.`, true);
  }
  offerKeeping();
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
  const engine = await ready();
  const files = await engine.ask("files", { view: { adapter, rank: r, strength: 1, off: [] } });
  await keepWhole({ id, title, r, kinds, prompt, alpha, losses: [], measured: [] }, files);
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
  showNewest();
}

// On the first screen: that there are some, and the last of them to be used at once.
function showNewest() {
  const usable = lab.kept.filter(fits);
  const newest = usable.at(-1);
  $("yours").hidden = !newest || $("adapter").value === newest.id;
  if ($("yours").hidden) return;
  const count = usable.length === 1 ? "1 adapter" : `${usable.length} adapters`;
  const use = button(`Use “${newest.title}”`, () => useOne(newest));
  $("yours").replaceChildren(
    `${count} of yours ${usable.length === 1 ? "is" : "are"} kept in this browser. `,
    use,
  );
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

function settingsOf({ r, alpha, rate, steps, best, kinds, unfinished }) {
  const short = unfinished ? ", unfinished" : "";
  const run = steps === undefined ? "" : `, rate ${rate}, ${best || steps} of ${steps} steps${short}`;
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
  const same = left.textSum === right.textSum;
  const curves = (same ? [left, right] : [right]).filter(({ losses }) => losses.length);
  showRuns(curves.map(asRun));
  const texts = same ? "" : " They learned from different texts, so only the curves of the second are drawn.";
  say("kept-status", `Above, “${left.title}” writes on the left and “${right.title}” on the right.${texts}`);
}

const asRun = about => ({ ...about, name: "kept", settings: about });

function endCompare() {
  setLeft(null);
  $("compare-end").hidden = true;
  say("kept-status", "The base writes on the left again.");
  changed();
}

export function prepareKept() {
  window.addEventListener("focus", () => lab.training || readKept()); // another tab may have added some
  on("model", showKept);
  on("changed", offerKeeping);
  on("changed", showNewest);
  $("compare").addEventListener("click", compare);
  $("compare-end").addEventListener("click", endCompare);
  $("keep").addEventListener("click", keepChosen);
  return readKept();
}
