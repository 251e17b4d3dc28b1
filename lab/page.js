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
    say(
      "status",
      `gpt2-mini is ready, after ${seconds.toFixed(1)} s, ${kernels}. It stays in this tab; nothing you type leaves it.`,
    );
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
// #adapter=plays&rank=2&strength=1.5&off=mlp.c_fc&prompt=…: what the sliders say, so that a link can say it.

const IN_ADDRESS = {
  adapter: "adapter",
  rank: "rank",
  strength: "alpha",
  temperature: "temperature",
  seed: "seed",
  prompt: "prompt",
};

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const adapter = asked.get("adapter");
  if (adapter && [...$("adapter").options].some(option => option.value === adapter))
    $("adapter").value = adapter;
  setRankLimit();
  for (const [name, id] of Object.entries(IN_ADDRESS)) {
    if (name !== "adapter" && asked.has(name)) $(id).value = asked.get(name);
  }
  const off = (asked.get("off") ?? "").split(",");
  for (const box of $("on").querySelectorAll("input")) box.checked = !off.includes(box.value);
  showSliders();
  return [...asked.keys()].some(name => name in IN_ADDRESS || name === "off");
}

function writeAddress() {
  const said = Object.entries(IN_ADDRESS).map(([name, id]) => [name, $(id).value]);
  const { off } = view();
  if (off.length) said.push(["off", off.join(",")]);
  try {
    history.replaceState(null, "", `#${new URLSearchParams(said)}`);
  } catch {
    // Some browsers refuse it to a page opened as a file: the button still copies the link.
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
  window.addEventListener("hashchange", () => readAddress() && changed());
}

Lab.page = lab; // for the tests, and for readers who open the console
// What is on the page now, for tools/record_lab.py.
Lab.seen = () => ({ write: lab.shown, train: { ...runs.at(-1), samples: lab.samples } });
