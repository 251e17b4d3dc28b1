// The page begins here: what it shows at first, and what loading the model changes.
import { readAddress } from "./address.js";
import { Engine, Lab, missing } from "./engine.js";
import recorded from "./recorded.json";
import { $, lab, say } from "./shared.js";
import { prepareTaking } from "./take_home.js";
import { countTokens, prepareTraining, runs, showRecordedRun } from "./train.js";
import { changed, prepareWriting, showRecordedTexts, startWriting } from "./write.js";

async function load() {
  $("load").disabled = true;
  $("progress").hidden = false;
  say("status", "Loading …");
  try {
    const before = performance.now();
    const engine = await Engine.start(share => {
      $("progress").value = share;
    });
    lab.engine = engine;
    const seconds = (performance.now() - before) / 1000;
    const kernels = engine.relaxed ? "with fused multiply and add" : "with plain SIMD";
    const cost = `after ${seconds.toFixed(1)} s, ${kernels}, in ${Math.round(engine.megabytes)} MB of memory`;
    say("status", `gpt2-mini is ready, ${cost}. It stays in this tab; nothing you type leaves it.`);
    $("progress").hidden = true;
    $("load").textContent = "Loaded";
    for (const id of ["write", "train", "file"]) $(id).disabled = false;
    startWriting();
    countTokens();
  } catch (error) {
    say("status", `That did not work: ${error.message}`, true);
    $("progress").hidden = true;
    $("load").disabled = false;
  }
}

// What tools/record_lab.py saw on an earlier visit is shown until the model is loaded.
function start() {
  const lacking = missing();
  if (lacking) {
    say("status", `This browser lacks ${lacking}. The lab needs it; the chapters do not.`, true);
  } else {
    say(
      "status",
      "Nothing is loaded before you press the button: 24 MB, which the browser then keeps. It runs on this machine.",
    );
    $("load").disabled = false;
    $("load").addEventListener("click", load);
  }
  prepareWriting();
  prepareTraining();
  prepareTaking();
  readAddress();
  showRecordedTexts(recorded.write);
  showRecordedRun(recorded.train);
  window.addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return; // a heading of this page
    readAddress();
    changed();
  });
}

start();
Lab.page = lab; // for the tests, and for readers who open the console
// What is on the page now, for tools/record_lab.py.
Lab.seen = () => ({ write: lab.shown, train: { ...runs.at(-1), samples: lab.samples } });
