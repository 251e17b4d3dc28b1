// The page: loading, what the address says, and what the parts of the page share.
const $ = id => document.getElementById(`lab-${id}`);

const lab = {
  engine: null, // once the model is loaded
  adapters: new Map(), // those that the worker has: {r, kinds}, by name
  shown: {}, // texts and bars on the page
  samples: [], // {at, prompt, text} of the last run
};

// Tell the reader; `wrong` in the colour of what went wrong.
function say(place, text, wrong = false) {
  $(place).textContent = text;
  $(place).classList.toggle("lab-wrong", wrong);
}

function checkedKinds(fieldset) {
  return [...$(fieldset).querySelectorAll("input:checked")].map(box => box.value);
}

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

// ---- The address -------------------------------------------------------------------------------------------------
// #adapter=plays&rank=2&alpha=1.5&off=mlp.c_fc&prompt=…: what the sliders say, so that a link can say it.

const IN_ADDRESS = ["adapter", "rank", "alpha", "temperature", "seed", "prompt"];

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const names = [...$("adapter").options].map(option => option.value);
  if (names.includes(asked.get("adapter"))) $("adapter").value = asked.get("adapter");
  setRankLimit();
  for (const id of IN_ADDRESS.slice(1)) if (asked.has(id)) $(id).value = asked.get(id);
  const off = (asked.get("off") ?? "").split(",");
  for (const box of $("on").querySelectorAll("input")) box.checked = !off.includes(box.value);
  showSliders();
}

function addressOfSettings() {
  const said = IN_ADDRESS.map(id => [id, $(id).value]);
  const { off } = view();
  if (off.length) said.push(["off", off.join(",")]);
  return `${location.href.split("#")[0]}#${new URLSearchParams(said)}`;
}

function writeAddress() {
  try {
    history.replaceState(null, "", addressOfSettings());
  } catch {
    // A browser may refuse it, to a page opened as a file or after very many changes: the button below still works.
  }
}

// ---- Start -------------------------------------------------------------------------------------------------------

// `recorded`: what tools/record_lab.py saw on an earlier visit. It stands here until the model is loaded.
function start(recorded) {
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

Lab.page = lab; // for the tests, and for readers who open the console
// What is on the page now, for tools/record_lab.py.
Lab.seen = () => ({ write: lab.shown, train: { ...runs.at(-1), samples: lab.samples } });
