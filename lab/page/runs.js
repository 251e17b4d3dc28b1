// The last runs: their curves, what they wrote on the way, and what the curves say.
import { drawRuns } from "./chart.js";
import { $, lab } from "./state.js";
import { inWords, row, verdict } from "./verdict.js";
import { made } from "./words.js";

const SHOWN_RUNS = 3; // curves that lie over each other

export let runs = []; // {name, settings, steps, losses, measured: [{at, heldOut, prose}], best: its step}

export function label({ name, title, recorded, settings: { r, rate } }) {
  if (recorded) return `a recorded run (r ${r}, rate ${rate})`;
  return /^run-\d+$/.test(name) ? `${name.replace("-", " ")} (r ${r}, rate ${rate})` : title;
}

// A run begins: its curves are drawn over those of the runs before it.
export function addRun(run) {
  runs = [...runs.filter(old => !old.recorded).slice(1 - SHOWN_RUNS), run];
  lab.samples = [];
  $("samples").replaceChildren();
}

export function dropRun(run) {
  runs = runs.filter(other => other !== run);
}

export function addSample(sample) {
  const { at, prompt, text } = sample;
  const words = made("span", { className: "lab-given", textContent: prompt });
  $("samples").prepend(made("li", {}, made("b", { textContent: `step ${at} ` }), words, text));
  lab.samples.push(sample);
}

export function drawTraining() {
  const current = runs.at(-1);
  $("loss").dataset.losses = JSON.stringify(current && !current.recorded ? current.losses : []);
  drawRuns($("loss"), runs);
  $("loss").setAttribute(
    "aria-label",
    `The loss, step by step. ${runs.map(run => inWords(label(run), run)).join(" ")}`,
  );
  const earlier = runs.slice(0, -1).map(label).join(" and ");
  const lines = [
    runs.length && label(current),
    earlier && `dashed: ${earlier}`,
    "nats a token, lower is better",
  ];
  $("legend").textContent = lines.filter(Boolean).join("; ");
  $("runs").hidden = !runs.length;
  $("runs").tBodies[0].replaceChildren(...runs.map(run => row(label(run), run)));
  $("verdict").replaceChildren(
    ...(current ? verdict(current) : []).map(([what, why]) =>
      made("li", { className: `lab-${what}` }, made("b", { textContent: `${what}: ` }), why),
    ),
  );
}

// Draw the curves of kept adapters together.
export function showRuns(chosen) {
  if (lab.training) return;
  runs = chosen;
  drawTraining();
}

// A run of an earlier visit, until the reader's first takes its place.
export function showRecordedRun(recorded) {
  runs = [{ ...recorded, recorded: true }];
  for (const sample of recorded.samples) addSample(sample);
  drawTraining();
}
