// Train on the reader's words: the form, the run that goes on, and the curves of the last runs.
import { drawRuns } from "./chart.js";
import { EXAMPLES } from "./examples.js";
import { $, checkedKinds, lab, latest, say } from "./shared.js";
import { made } from "./words.js";
import { changed, setRankLimit } from "./write.js";

const SHOWN_RUNS = 3; // curves that lie over each other
const STORED = "lora-book-lab-text"; // where the browser keeps the reader's text

export let runs = []; // {name, settings, steps, losses, measured: [{at, heldOut, prose}]}
let trained = 0; // counts up, for names
let training = false;
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
};

// What the form says. Throws an Error that names what will not do.
function trainingSettings() {
  const settings = { text: $("text").value, prompt: $("prompt").value, batch: onPhone() ? 2 : 4 };
  for (const [key, { id, name, fits, expected }] of Object.entries(NUMBERS)) {
    const typed = $(id).value.trim();
    settings[key] = typed === "" ? Number.NaN : Number(typed);
    if (fits(settings[key])) continue;
    $(id).focus();
    throw new Error(`${name} must be ${expected()}; it is “${typed}”.`);
  }
  settings.kinds = checkedKinds("train-on");
  if (!settings.kinds.length) throw new Error("Choose at least one kind of layer for LoRA.");
  return settings;
}

async function train() {
  const name = `run-${trained + 1}`;
  const run = { name, losses: [], measured: [] };
  try {
    run.settings = trainingSettings();
    run.steps = run.settings.steps;
  } catch (error) {
    return say("train-status", error.message, true);
  }
  trained += 1;
  runs = [...runs.filter(old => !old.recorded).slice(1 - SHOWN_RUNS), run];
  lab.samples = [];
  $("samples").replaceChildren();
  setTraining(true);
  say("train-status", `${label(run)} is in training.`);
  try {
    const news = what => heard(run, what);
    const { steps, diverged } = await lab.engine.ask("train", { name, settings: run.settings }, { news });
    run.steps = Math.max(1, run.losses.length);
    const done = `${label(run)} is trained: ${steps} steps. It is chosen above, and can be taken home below.`;
    say("train-status", diverged ?? done, Boolean(diverged));
    offerAdapter({ name, ...run.settings }, `yours: ${label(run)}`);
    chooseAdapter(name);
  } catch (error) {
    runs = runs.filter(other => other !== run);
    say("train-status", error.message, true);
  }
  setTraining(false);
  drawTraining();
}

function label({ name, recorded, settings: { r, rate } }) {
  return `${recorded ? "a recorded run" : name.replace("-", " ")} (r ${r}, rate ${rate})`;
}

// What the worker tells on the way.
function heard(run, { step, loss, perSecond, left, at, heldOut, prose, sample, pausedAt }) {
  const { name, settings, losses, measured } = run;
  if (loss !== undefined) {
    losses.push(loss);
    const speed = `${Math.round(perSecond)} tokens/s, ${Math.ceil(left / 1000)} s left`;
    $("speed").textContent = `step ${step} of ${run.steps}, ${speed}`;
  }
  if (heldOut !== undefined) {
    measured.push({ at, heldOut, prose });
    const beside = `held-out end ${heldOut.toFixed(2)}, other prose ${prose.toFixed(2)}.`;
    if (at > 0) say("train-status", `Step ${at}: training ${losses.at(-1).toFixed(2)}, ${beside}`);
  }
  if (sample !== undefined) {
    addSample({ at, prompt: settings.prompt, text: sample });
    offerAdapter({ name, ...settings }, `yours, in training: ${label(run)}`);
  }
  if (pausedAt) {
    say("train-status", `Paused after step ${pausedAt}. As it is now, the adapter can be chosen above.`);
    offerAdapter({ name, ...settings }, `yours, paused: ${label(run)}`);
  }
  drawTraining();
}

function addSample(sample) {
  const { at, prompt, text } = sample;
  const words = made("span", { className: "lab-given", textContent: prompt });
  $("samples").prepend(made("li", {}, made("b", { textContent: `step ${at} ` }), words, text));
  lab.samples.push(sample);
}

function setTraining(on) {
  training = on;
  paused = false;
  $("train").disabled = on;
  $("pause").disabled = $("stop").disabled = !on;
  $("pause").textContent = "Pause";
  if (!on) $("speed").textContent = "";
}

function drawTraining() {
  const current = runs.at(-1);
  $("loss").dataset.losses = JSON.stringify(current && !current.recorded ? current.losses : []);
  drawRuns($("loss"), runs);
  $("loss").setAttribute("aria-label", `The loss, step by step. ${runs.map(inWords).join(" ")}`);
  const earlier = runs.slice(0, -1).map(label).join(" and ");
  const lines = [
    runs.length && label(current),
    earlier && `dashed: ${earlier}`,
    "nats a token, lower is better",
  ];
  $("legend").textContent = lines.filter(Boolean).join("; ");
  $("runs").hidden = !runs.length;
  $("runs").tBodies[0].replaceChildren(...runs.map(row));
}

// From where to where each loss went: the training loss as the mean of its last ten steps.
function ends({ losses, measured }) {
  const tail = losses.slice(-10);
  const mean = tail.reduce((a, b) => a + b, 0) / tail.length;
  return [
    [losses[0], mean],
    [measured[0]?.heldOut, measured.at(-1)?.heldOut],
    [measured[0]?.prose, measured.at(-1)?.prose],
  ].map(pair => (pair.every(Number.isFinite) ? pair.map(loss => loss.toFixed(2)).join(" → ") : "–"));
}

function inWords(run) {
  const [loss, heldOut, prose] = ends(run);
  return `${label(run)}: training ${loss}, held-out end ${heldOut}, other prose ${prose}.`;
}

function row(run) {
  const head = made("th", { scope: "row", textContent: label(run) });
  return made("tr", {}, head, ...ends(run).map(text => made("td", { textContent: text })));
}

// An adapter that the reader trained or brought can be chosen from now on. Where it is chosen already, it has changed.
export function offerAdapter({ name, r, kinds }, text) {
  const known = [...$("adapter").options].find(option => option.value === name);
  const option = known ?? $("adapter").appendChild(made("option", { value: name }));
  option.textContent = text;
  lab.adapters.set(name, { r, kinds });
  if ($("adapter").value === name) changed();
}

export function chooseAdapter(name) {
  $("adapter").value = name;
  setRankLimit();
  $("alpha").value = 1;
  changed();
}

// ---- The text ----------------------------------------------------------------------------------------------------

export const countTokens = latest(async () => {
  const text = $("text").value;
  const tokens = lab.engine
    ? `, ${(await lab.engine.ask("count", { text })).toLocaleString("en")} tokens`
    : "";
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

// s = α / r: with another rank and the same alpha, the same A·B counts for more or less.
function showScale() {
  const s = Number($("train-alpha").value) / Number($("train-rank").value);
  $("scale").textContent = Number.isFinite(s) ? `s = ${Number(s.toPrecision(3))}` : "s = α / r";
}

export function prepareTraining() {
  for (const id of ["train-rank", "train-alpha"]) $(id).addEventListener("input", showScale);
  $("example").append(made("option", { value: "", textContent: "my own words" }));
  for (const [name, { title }] of Object.entries(EXAMPLES)) {
    $("example").append(made("option", { value: name, textContent: `example: ${title}` }));
  }
  let stored = null;
  try {
    stored = localStorage.getItem(STORED);
  } catch {
    // Nothing is kept in this browser.
  }
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
  });
  $("train-form").addEventListener("submit", event => {
    event.preventDefault();
    if (lab.engine && !training) train();
  });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    lab.engine.ask(paused ? "pause" : "goOn");
    $("pause").textContent = paused ? "Go on" : "Pause";
  });
  $("stop").addEventListener("click", () => lab.engine.ask("stop"));
  window.addEventListener("beforeunload", event => {
    if (training) event.preventDefault(); // the browser asks whether to leave
  });
  new ResizeObserver(drawTraining).observe($("loss"));
}

// A run of an earlier visit, until the reader's first takes its place.
export function showRecordedRun(recorded) {
  if (!recorded) return;
  runs = [{ ...recorded, recorded: true }];
  for (const sample of recorded.samples) addSample(sample);
  drawTraining();
}
