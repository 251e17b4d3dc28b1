// Train on the reader's words: the form, the run that goes on, and the curves of the last runs.
import { EXAMPLES } from "./examples.js";
import { forgetRun, keepProgress, keepRun, nextRun } from "./kept.js";
import { ready } from "./loading.js";
import { prefersStill } from "./play.js";
import { addRun, addSample, drawTraining, dropRun, label } from "./runs.js";
import { $, checkedKinds, lab, latest, on, say, suggestPrompt } from "./state.js";
import { made } from "./words.js";
import { chooseAdapter, offerAdapter, touched, wayUp } from "./write.js";

const STORED = "lora-book-lab-text"; // where the browser keeps the reader's text
const MOST_WORKERS = 4; // a step has no more rows
const PATIENCE = 30; // steps for which the held-out loss may fail to fall

let paused = false;

const onPhone = () => window.innerWidth < 600;

const whole = (low, high) => value => Number.isInteger(value) && value >= low && value <= high;
const positive = value => value > 0 && Number.isFinite(value);
const NUMBERS = {
  r: {
    id: "train-rank",
    name: "Rank r",
    fits: value => whole(1, lab.engine.config.C)(value),
    expected: () => `a whole number from 1 to ${lab.engine.config.C}, this model's width`,
  },
  alpha: { id: "train-alpha", name: "Alpha", fits: positive, expected: () => "a number above 0" },
  rate: { id: "rate", name: "The rate", fits: positive, expected: () => "a number above 0, such as 0.001" },
  steps: {
    id: "steps",
    name: "Steps",
    fits: whole(1, 2000),
    expected: () => "a whole number from 1 to 2000",
  },
  workers: {
    id: "workers",
    name: "Workers",
    fits: whole(1, MOST_WORKERS),
    expected: () => `a whole number from 1 to ${MOST_WORKERS}`,
  },
};

// What the form says. Throws an Error that names the setting that is wrong.
function trainingSettings() {
  const settings = { text: $("text").value, prompt: $("prompt").value, batch: onPhone() ? 2 : 4 };
  for (const [key, { id, name, fits, expected }] of Object.entries(NUMBERS)) {
    const typed = $(id).value.trim();
    settings[key] = typed === "" ? Number.NaN : Number(typed);
    if (fits(settings[key])) continue;
    $(id).focus();
    throw new Error(`${name} must be ${expected()}, not “${typed}”.`);
  }
  settings.kinds = checkedKinds("train-on");
  if (!settings.kinds.length) throw new Error("Choose at least one kind of layer for LoRA.");
  settings.patience = $("stop-early").checked ? PATIENCE : Number.POSITIVE_INFINITY;
  return settings;
}

async function train() {
  setTraining(true);
  try {
    if (!lab.engine) say("train-status", "The model is loaded first; then the training begins.");
    await ready();
    await trainOnce();
  } catch (error) {
    say("train-status", error.message, true);
  }
  setTraining(false);
  drawTraining();
}

async function trainOnce() {
  suggestPrompt(promptOfText());
  const settings = trainingSettings();
  const name = await nextRun();
  const run = { name, title: titleOf(name), settings, steps: settings.steps, losses: [], measured: [] };
  run.files = {}; // of its adapters, by name
  addRun(run);
  $("speed-up").hidden = true;
  $("pause").disabled = $("stop").disabled = false;
  say("train-status", `${label(run)} is training.`);
  try {
    const news = what => heard(run, what);
    Object.assign(run, await lab.engine.ask("train", { name, settings }, { news }));
  } catch (error) {
    run.ended = error.message;
  }
  finish(run);
}

// A run that was cut short has the adapter of its best measurement.
function finish(run) {
  const { name, losses, files, ended, diverged } = run;
  run.steps = Math.max(1, losses.length);
  if (files[name]) {
    say("train-status", doneWords(run), Boolean(ended ?? diverged));
    $("train-status").append(" ", wayUp());
    offerTrained(run);
    keepRun(run);
    return;
  }
  dropRun(run);
  forgetRun(run);
  const stopped = "The run was stopped before it learned anything, so nothing is kept.";
  say("train-status", ended ?? diverged ?? stopped, Boolean(ended ?? diverged));
}

function doneWords(run) {
  const { steps, settings, ranOut, best, last, ended, diverged } = run;
  if (diverged) return diverged;
  if (ended)
    return `${ended} The run ended after step ${steps}. The adapter of step ${best || run.measured.at(-1).at} is kept.`;
  const count = steps === 1 ? "1 step" : `${steps} steps`;
  const early = steps < settings.steps && ranOut;
  const why = early
    ? ` It stopped early because the held-out loss had not fallen for ${PATIENCE} steps.`
    : "";
  const kept = last ? ` The page kept the adapter of step ${best}, where the held-out loss was lowest.` : "";
  return `${label(run)} is trained: ${count}.${why}${kept}`;
}

function offerTrained(run) {
  const { name, settings, last, best, steps, files } = run;
  const about = { ...settings, name };
  offerAdapter(about, `yours: ${label(run)}${last ? `, best, at step ${best}` : ""}`, files[name]);
  if (last) {
    const text = `yours: ${label(run)}, last, at step ${steps}`;
    offerAdapter({ ...about, name: last }, text, files[last]);
  }
  chooseAdapter(name);
}

// What a run's adapter is called until the reader renames it.
function titleOf(name) {
  return `${EXAMPLES[$("example").value]?.title ?? "my own words"}, ${name.replace("-", " ")}`;
}

// What the worker tells on the way.
function heard(run, { pausedAt, ...what }) {
  const { name, settings } = run;
  if (what.loss !== undefined) heardStep(run, what);
  if (what.heldOut !== undefined) heardMeasurement(run, what);
  if (what.sample !== undefined) {
    const { at, sample, known } = what;
    addSample({ at, prompt: settings.prompt, text: sample, known });
    offerAdapter({ name, ...settings }, `yours, in training: ${label(run)}`);
  }
  if (pausedAt !== undefined) {
    const where = "You can try the adapter as it is now: it is in the list above.";
    say("train-status", `Paused after step ${pausedAt}. ${where}`);
    offerAdapter({ name, ...settings }, `yours, paused: ${label(run)}`);
  }
  drawTraining();
}

function heardStep(run, { step, loss, perSecond, left, speedUp, alone }) {
  run.losses.push(loss);
  run.perSecond = perSecond;
  const speed = `${Math.round(perSecond)} tokens/s, ${Math.ceil(left / 1000)} s left`;
  $("speed").textContent = `step ${step} of ${run.steps}, ${speed}`;
  if (speedUp && $("speed-up").hidden) showSpeedUp(speedUp);
  if (alone) say("train-status", alone, true);
}

function heardMeasurement(run, { at, heldOut, prose, best, files }) {
  run.measured.push({ at, heldOut, prose });
  run.best = best;
  const beside = `held-out end ${heldOut.toFixed(2)}, other prose ${prose.toFixed(2)}.`;
  if (at > 0) say("train-status", `Step ${at}: training ${run.losses.at(-1).toFixed(2)}, ${beside}`);
  if (!files) return;
  run.files[run.name] = files;
  keepProgress(run);
}

// A step's time with one worker and with all of them, as bars.
function showSpeedUp({ workers, alone, together }) {
  const ratio = alone / together;
  const words = made("p", {
    className: "lab-note",
    textContent: `${workers} workers: ${ratio.toFixed(1)} × one${ratio < 1 ? ", so one is faster here" : ""}.`,
  });
  const bars = [
    ["1 worker", alone],
    [`${workers} workers`, together],
  ].map(([name, ms]) => timeBar(name, ms, ms / Math.max(alone, together)));
  $("speed-up").replaceChildren(words, ...bars);
  $("speed-up").hidden = false;
}

function timeBar(name, ms, share) {
  const filled = made("span", { className: "lab-filled" });
  filled.style.width = `${100 * share}%`;
  return made(
    "div",
    { className: "lab-bar lab-time" },
    made("span", { textContent: name }),
    made("span", { className: "lab-groove" }, filled),
    made("span", { textContent: `${Math.round(ms)} ms a step` }),
  );
}

function setTraining(going) {
  lab.training = going;
  paused = false;
  $("train").disabled = $("train-now").disabled = going;
  $("pause").disabled = $("stop").disabled = true;
  $("pause").textContent = "Pause";
  if (!going) $("speed").textContent = "";
}

// ---- The text ----------------------------------------------------------------------------------------------------

const countTokens = latest(async () => {
  const text = $("text").value;
  const { engine } = lab;
  const tokens = engine ? `, ${(await engine.ask("count", { text })).toLocaleString("en")} tokens` : "";
  $("count").textContent = `${text.length.toLocaleString("en")} characters${tokens}`;
});

function textChanged() {
  try {
    localStorage.setItem(STORED, $("text").value);
  } catch {
    // No room, or the browser keeps nothing: then the text is not kept, and the page says so.
    say("train-status", "This browser does not keep the text: a reload would lose it.");
  }
  countTokens();
}

// A beginning after which the text's own style shows: an example's, or the first words of the reader's text.
function promptOfText() {
  const example = EXAMPLES[$("example").value];
  return example ? example.prompt : $("text").value.trim().split(/\s+/, 3).join(" ").slice(0, 60);
}

// s = α / r: with another rank and the same alpha, the same A·B counts for more or less.
function showScale() {
  const s = Number($("train-alpha").value) / Number($("train-rank").value);
  $("scale").textContent = Number.isFinite(s) ? `s = ${Number(s.toPrecision(3))}` : "s = α / r";
}

function storedText() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null; // nothing is kept in this browser
  }
}

// Show the stored text, or the first example.
function prepareText() {
  $("example").append(made("option", { value: "", textContent: "my own words" }));
  for (const [name, { title }] of Object.entries(EXAMPLES)) {
    $("example").append(made("option", { value: name, textContent: `example: ${title}` }));
  }
  const stored = storedText();
  const example = Object.keys(EXAMPLES).find(name => EXAMPLES[name].text === (stored ?? EXAMPLES[name].text));
  $("example").value = example ?? "";
  $("text").value = stored ?? EXAMPLES[example].text;
  countTokens();
  $("text").addEventListener("input", () => {
    $("example").value = "";
    textChanged();
  });
  $("example").addEventListener("change", () => {
    $("text").value = EXAMPLES[$("example").value]?.text ?? "";
    textChanged();
    if (!$("example").value) return;
    suggestPrompt(promptOfText());
    touched();
  });
}

// If the worker has ended, the run's own question says so.
function tellWorker(job) {
  lab.engine?.ask(job).catch(() => {});
}

export function prepareTraining() {
  for (const id of ["train-rank", "train-alpha"]) $(id).addEventListener("input", showScale);
  prepareText();
  on("loaded", countTokens);
  on("model", countTokens);
  $("train-form").addEventListener("submit", event => {
    event.preventDefault();
    if (!lab.training) train();
  });
  $("train-now").addEventListener("click", () => {
    $("training").scrollIntoView({ behavior: prefersStill() ? "auto" : "smooth" });
    if (!lab.training) train();
  });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    tellWorker(paused ? "pause" : "goOn");
    $("pause").textContent = paused ? "Go on" : "Pause";
  });
  $("stop").addEventListener("click", () => tellWorker("stop"));
  window.addEventListener("beforeunload", event => {
    if (lab.training) event.preventDefault(); // the browser asks whether to leave
  });
  new ResizeObserver(drawTraining).observe($("loss"));
}
