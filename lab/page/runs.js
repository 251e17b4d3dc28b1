// The last runs: their curves, what they wrote on the way, and what the curves say.

import { KNOWN } from "../worker/known.js";
import { drawRuns } from "./chart.js";
import { $, lab } from "./state.js";
import { inWords, row, verdict } from "./verdict.js";
import { made } from "./words.js";

const SHOWN_RUNS = 3; // whose curves are drawn together

export let runs = []; // {name, settings, steps, losses, measured: [{at, heldOut, prose}], best: its step}

export function label({ name, title, recorded, settings: { r, rate } }) {
  if (recorded) return `a recorded run (r ${r}, rate ${rate})`;
  return /^run-\d+$/.test(name) ? `${name.replace("-", " ")} (r ${r}, rate ${rate})` : title;
}

// A run begins: its curves are drawn over those of earlier runs on the same text. Losses on another text say nothing
// beside them.
export function addRun(run) {
  const comparable = runs.filter(old => !old.recorded && old.settings.text === run.settings.text);
  runs = [...comparable.slice(1 - SHOWN_RUNS), run];
  lab.samples = [];
}

export function dropRun(run) {
  runs = runs.filter(other => other !== run);
}

// {at, prompt, text, known}: what it writes after `prompt`, and after KNOWN, a beginning that the base knows.
export function addSample(sample) {
  lab.samples.push(sample);
}

// Texts beside the curves: the base's, which is what the run wrote before its first step, and those of the kept step; and
// all others below.
function showSamples({ best }) {
  const [first] = lab.samples;
  const kept = lab.samples.findLast(({ at }) => at === best) ?? lab.samples.at(-1);
  const name = kept?.at > 0 ? `With the adapter, step ${kept.at}${kept.at === best ? " (kept)" : ""}` : "";
  for (const [id, text] of [
    ["learned", "text"],
    ["forgotten", "known"],
  ]) {
    const pair = first ? [sampleOf("Base", first, text)] : [];
    if (name) pair.push(sampleOf(name, kept, text));
    $(id).replaceChildren(...pair);
  }
  const all = lab.samples.toReversed().map(one => {
    const item = sampleOf(`step ${one.at}`, one, "text");
    item.classList.toggle("lab-is-kept", one.at === best);
    return item;
  });
  $("samples").replaceChildren(...all);
}

function sampleOf(name, sample, text) {
  const given = text === "known" ? KNOWN : sample.prompt;
  const words = made("span", { className: "lab-given", textContent: given });
  return made("li", {}, made("b", { textContent: name }), words, sample[text] ?? "");
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
  showSamples(current ?? {});
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
  lab.samples = []; // those of another run
  drawTraining();
}

// A run of an earlier visit, until the reader's first takes its place.
export function showRecordedRun(recorded) {
  runs = [{ ...recorded, recorded: true }];
  lab.samples = recorded.samples;
  drawTraining();
}
