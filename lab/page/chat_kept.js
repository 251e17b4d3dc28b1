// The chat's adapters that stay in this browser, in the lab's own store: open one again, delete one.
import { filesOf, keep, keptAdapters, remove } from "../files/store.js";
import { $, say } from "./state.js";
import { made } from "./words.js";

let all = []; // what is said of each that fits the model, the oldest first

// Keep what a run has learned so far, in place of the state before. Nothing waits for it: a store that does not answer
// costs the run no time, see files/store.js.
export async function keepRun(about, files, model) {
  try {
    await keep({ ...about, model }, files);
    await readKept(model, about.id);
  } catch (error) {
    say("kept-status", `${error.message} The adapter is gone when you close this page: download it.`, true);
  }
}

// Read what is kept for this model, and offer it. Returns the newest, or undefined.
export async function readKept(model, chosen) {
  try {
    all = (await keptAdapters()).filter(about => about.model === model);
    say("kept-status", "");
  } catch (error) {
    all = [];
    say("kept-status", `${error.message} What you train is gone when you close this page.`, true);
  }
  const options = all.map(about => made("option", { value: about.id, textContent: titleOf(about) }));
  $("kept").replaceChildren(...options);
  $("kept-row").hidden = !all.length;
  if (all.length) $("kept").value = chosen ?? all.at(-1).id;
  return all.at(-1);
}

export const chosenKept = () => all.find(({ id }) => id === $("kept").value);

function titleOf({ title, created, at, steps, unfinished }) {
  const when = new Date(created).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  return `${title}, ${when}, step ${at} of ${steps}${unfinished ? ", unfinished" : ""}`;
}

// {name, files} for the worker, and a line that says where it is from.
export async function openKept(about) {
  const line = `Opened again from this browser's store: ${titleOf(about)}.`;
  return { name: about.id, files: await filesOf(about), line };
}

export async function deleteKept(about, model) {
  try {
    await remove(about);
    await readKept(model);
    say("kept-status", `“${about.title}” is deleted from this browser's store.`);
  } catch (error) {
    say("kept-status", error.message, true);
  }
}
