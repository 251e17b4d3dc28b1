// What the curves of a run say: learning, memorising, forgetting; and its row in the table of runs.
import { made } from "./words.js";

const MATTERS = 0.05; // nats a token: smaller changes are not spoken of
const two = loss => loss.toFixed(2);

// The losses of a run at its start, at the step that is kept, and at its end; the training loss at its end is the mean
// of the last ten steps.
function ends({ losses, measured, best }) {
  const tail = losses.slice(-10);
  return {
    first: losses[0],
    final: tail.reduce((a, b) => a + b, 0) / tail.length,
    start: measured[0],
    kept: measured.find(({ at }) => at === best) ?? measured.at(-1),
    last: measured.at(-1),
  };
}

// [[what, why], …] in words.
export function verdict(run) {
  const { first, final, start, kept, last } = ends(run);
  if (!start || last.at === 0) return [["just begun", "the curves say nothing yet."]];
  const said = [];
  const learned = start.heldOut - kept.heldOut;
  if (learned > MATTERS) {
    const what = `the loss on the held-out end, which it never trains on, fell from ${two(start.heldOut)} to ${two(kept.heldOut)} by step ${kept.at}.`;
    said.push(["Learning", what]);
  } else {
    said.push([
      "Nothing learned yet",
      `the loss on the held-out end has not fallen below ${two(start.heldOut)}.`,
    ]);
  }
  if (last.at > kept.at && last.heldOut - kept.heldOut > MATTERS && final < first) {
    const what = `after step ${kept.at} the training loss went on falling, to ${two(final)}, but the held-out loss rose to ${two(last.heldOut)}. From there on it memorised these sentences.`;
    said.push(["Memorising", what]);
  }
  const forgotten = kept.prose - start.prose;
  if (Math.max(forgotten, last.prose - start.prose) > MATTERS) {
    const later = last.at > kept.at ? `, and to ${two(last.prose)} by the last step` : "";
    const what = `the loss on other prose rose from ${two(start.prose)} to ${two(kept.prose)} at step ${kept.at}${later}. With the adapter, the model is worse at what the base could do.`;
    said.push(["Forgetting", what]);
  }
  return said;
}

// From where to where each loss went, one text for each column of the table.
function columns(run) {
  const { first, final, start, kept, last } = ends(run);
  const pair = (a, b) => (Number.isFinite(a) && Number.isFinite(b) ? `${two(a)} → ${two(b)}` : "–");
  const measured = key => {
    if (!start) return "–";
    const end = last.at > kept.at ? ` (${two(last[key])})` : "";
    return `${pair(start[key], kept[key])}${end}`;
  };
  return [pair(first, final), measured("heldOut"), measured("prose")];
}

function crewOf({ settings: { workers } }) {
  return workers > 1 ? ` (${workers} workers)` : "";
}

export function row(name, run) {
  const head = made("th", { scope: "row", textContent: name });
  const speed = run.perSecond ? `${Math.round(run.perSecond)}${crewOf(run)}` : "–";
  return made("tr", {}, head, ...[...columns(run), speed].map(text => made("td", { textContent: text })));
}

export function inWords(name, run) {
  const [loss, heldOut, prose] = columns(run);
  const said = verdict(run).map(([what, why]) => `${what}: ${why}`);
  return `${name}: training ${loss}, held-out end ${heldOut}, other prose ${prose}. ${said.join(" ")}`;
}
