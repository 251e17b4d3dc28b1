// Bring a GPT-2: from the reader's disk or from the Hub, on the processor or on the GPU; and measure both.
import { chosenModelFiles, fetchFromHub, lookAtHub } from "./bring_model.js";
import { Lab, miniFiles } from "./engine.js";
import { showKept } from "./kept.js";
import { ready, wantDevice, whenLoaded } from "./loading.js";
import { $, lab, MINI, say } from "./shared.js";
import { countTokens } from "./train.js";
import { made } from "./words.js";
import { modelChanged } from "./write.js";

const inWords = { wasm: "the processor (WebAssembly)", webgpu: "the GPU (WebGPU)" };
const megabytes = bytes => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${Math.round(bytes / 1e6)} MB`);

let found = null; // what `lookAtHub` found
let fetching = null; // an AbortController

// Do `work` and say what went wrong. While it goes on, the model cannot be changed twice.
async function trying(place, work) {
  const buttons = ["model", "model-look", "model-fetch", "model-back", "device", "rounding", "measure"];
  for (const id of buttons) $(id).disabled = true;
  try {
    await work();
  } catch (error) {
    say(place, error.message, true);
  }
  for (const id of buttons) $(id).disabled = false;
  $("model-progress").hidden = $("model-cancel").hidden = true;
}

const showShare = share => {
  $("model-progress").hidden = false;
  $("model-progress").value = share;
};

// Put a model in the place of the one that is loaded. If that fails, that one stays, with its adapters.
async function change(files, name) {
  await ready();
  say("model-status", `Loading ${name} …`);
  const news = ({ share }) => share !== undefined && showShare(share);
  const device = lab.engine.device?.kind;
  await lab.engine.load(files, { name, exact: $("exact").checked, device, news });
  lab.model = name;
  modelChanged();
  showKept();
  countTokens();
  showModel();
}

// What is loaded, in numbers.
function showModel() {
  const { engine, model } = lab;
  const { C, depth, V } = engine.config;
  const rounded = engine.rounded ? " Its weights are rounded to 16 bits." : "";
  const size = `${depth} blocks, ${C} wide, ${V.toLocaleString("en")} tokens`;
  const adapters = model === MINI ? "" : " The book's adapters do not fit it: train one.";
  say(
    "model-status",
    `${model} is loaded: ${size}, in ${Math.round(engine.megabytes)} MB.${rounded}${adapters}`,
  );
  $("model-back").hidden = model === MINI;
  showDevice(engine.device);
}

function showDevice({ kind, name, why }) {
  $("device").value = kind;
  say("device-status", `It runs on ${inWords[kind]}${name && `: ${name}`}.${why && ` ${why}`}`);
}

// ---- The Hub -----------------------------------------------------------------------------------------------------

async function look() {
  $("model-fetch").hidden = true;
  found = await lookAtHub($("model-name").value.trim(), Lab.hub);
  const files = found.files.map(({ name, bytes }) => `${name} (${megabytes(bytes)})`).join(", ");
  say("model-status", `${found.name} on ${found.hub}: ${files}. Nothing is fetched until you press Fetch.`);
  $("model-fetch").textContent = `Fetch ${megabytes(found.bytes)} from ${new URL(found.hub).host}`;
  $("model-fetch").hidden = false;
}

async function fetchFound() {
  fetching = new AbortController();
  $("model-cancel").hidden = false;
  say("model-status", `Fetching ${found.name} …`);
  const files = await fetchFromHub(found, { news: showShare, signal: fetching.signal });
  $("model-cancel").hidden = true;
  await change(files, found.name);
  $("model-fetch").hidden = true;
}

// ---- The device --------------------------------------------------------------------------------------------------

// Move the model to the chosen device; if that fails, it stays where it is.
async function move() {
  const device = $("device").value;
  if (!lab.engine) return wantDevice(device);
  try {
    say("device-status", "Moving the model …");
    await lab.engine.moveTo(device);
  } finally {
    showDevice(lab.engine.device);
  }
}

async function measure() {
  say("measure-status", "Loading the model first …");
  await ready();
  const news = ({ doing }) => doing && say("measure-status", doing);
  const { wasm, webgpu, why } = await lab.engine.ask("speed", {}, { news });
  const rows = [
    ["the processor (WebAssembly)", wasm],
    ["the GPU (WebGPU)", webgpu],
  ].filter(([, speed]) => speed);
  $("measured").tBodies[0].replaceChildren(...rows.map(([on, speed]) => speedRow(on, speed)));
  $("measured").caption.textContent = `${lab.model}, measured in this browser`;
  $("measured").hidden = false;
  const ratio = webgpu && wasm.step / webgpu.step;
  const compared =
    ratio >= 1 ? `is ${ratio.toFixed(1)} times as fast` : `takes ${(1 / ratio).toFixed(1)} times as long`;
  say("measure-status", webgpu ? `A training step ${compared} on the GPU.` : why);
}

function speedRow(on, { gflops, tokens, step }) {
  const head = made("th", { scope: "row", textContent: on });
  const cells = [gflops.toFixed(1), tokens.toFixed(0), `${step.toFixed(0)} ms`];
  return made("tr", {}, head, ...cells.map(textContent => made("td", { textContent })));
}

// Compare the logits after the prompt with those of the weights as they are in the file.
async function measureRounding() {
  say("rounding-status", "");
  await ready();
  if (!lab.engine.rounded) return say("rounding-status", "Nothing: no weight of this model was rounded.");
  const prompt = $("prompt").value;
  say("rounding-status", "The model is loaded again, with 32 bits a weight …");
  const news = ({ share }) => share !== undefined && showShare(share);
  const { largest, spread, same } = await lab.engine.ask("rounding", { prompt }, { news });
  const token = same
    ? "The likeliest next token stays the same."
    : "The likeliest next token is another one.";
  const [off, wide] = [largest, spread].map(value => Number(value.toPrecision(2)));
  return say(
    "rounding-status",
    `After this prompt, rounding moves no logit by more than ${off}; the logits' standard deviation is ${wide}. ${token}`,
  );
}

export function prepareBringing() {
  whenLoaded(() => {
    showModel();
    lab.engine.onDevice = showDevice;
  });
  $("model").addEventListener("change", () => {
    const chosen = [...$("model").files];
    if (!chosen.length) return;
    const folder = chosen[0].webkitRelativePath.split("/")[0];
    trying("model-status", () => change(chosenModelFiles(chosen), folder || "your GPT-2"));
    $("model").value = "";
  });
  $("model-look").addEventListener("click", () => trying("model-status", look));
  $("model-fetch").addEventListener("click", () => trying("model-status", fetchFound));
  $("model-cancel").addEventListener("click", () => fetching.abort());
  $("model-back").addEventListener("click", () =>
    trying("model-status", async () => change(await miniFiles(), MINI)),
  );
  $("device").addEventListener("change", () => trying("device-status", move));
  $("rounding").addEventListener("click", () => trying("rounding-status", measureRounding));
  $("measure").addEventListener("click", () => trying("measure-status", measure));
}
