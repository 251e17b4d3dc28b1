// Bring a GPT-2: from the reader's disk or from the Hub, on the processor or on the GPU.

import { Lab, miniFiles } from "./engine.js";
import { ready, wantDevice } from "./loading.js";
import { chosenModelFiles, fetchFromHub, lookAtHub } from "./model_sources.js";
import { $, lab, listDevices, MINI, on, say, showDevice, tell } from "./state.js";

const megabytes = bytes => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${Math.round(bytes / 1e6)} MB`);

let found = null; // what `lookAtHub` found
let fetching = null; // an AbortController

// Do `work` and say what went wrong. While it goes on, the model cannot be changed twice.
async function trying(place, work) {
  const buttons = ["model", "model-look", "model-fetch", "model-back", "device"];
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
  const engine = await ready();
  say("model-status", `Loading ${name} …`);
  const news = ({ share }) => share !== undefined && showShare(share);
  await engine.load(files, { name, device: engine.device?.kind, news });
  lab.model = name;
  tell("model");
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
  const { engine } = lab;
  if (!engine) return wantDevice(device);
  try {
    say("device-status", "Moving the model …");
    await engine.moveTo(device);
  } finally {
    showDevice(engine.device);
  }
}

export function prepareBringing() {
  listDevices();
  on("loaded", () => {
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
}
