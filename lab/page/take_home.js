// Take an adapter home as the two files that `lora_lib` and Hugging Face PEFT open, or bring one.
import { mostBytes } from "../files/adapter_files.js";
import { adapterFilesIn, zip } from "../files/zip.js";
import { keepWhole } from "./kept.js";
import { ready } from "./loading.js";
import { $, lab, MINI, on, say, view } from "./state.js";
import { chooseAdapter, offerAdapter, wayUp } from "./write.js";

const folderName = () => `${$("adapter").value}-adapter`;

// Whether the sliders leave anything of the adapter.
function anythingLeft() {
  const { adapter, rank, strength, off } = view();
  const kinds = lab.adapters.get(adapter)?.kinds ?? [];
  return rank > 0 && strength > 0 && kinds.some(kind => !off.includes(kind));
}

function takingChanged() {
  const { rank, strength } = view();
  const some = anythingLeft();
  $("download").disabled = !some;
  const name = $("adapter").selectedOptions[0].textContent;
  if (lab.engine) {
    const as = `as the sliders are set: rank ${rank}, strength ${strength} × s`;
    $("taken").textContent = some
      ? `${name}, ${as}.`
      : "With rank or strength at zero, or no layer chosen, there is nothing to take home.";
  }
  $("python").textContent = libraryLines(folderName());
  $("peft").textContent = peftLines(folderName());
}

// Where Python finds the model: a brought one lies in a folder, or on the Hub.
const onHub = () => lab.model.includes("/");
const folder = () => (onHub() ? lab.model : "FOLDER_OF_YOUR_MODEL");

function libraryLines(name) {
  const model = lab.model === MINI ? MINI : folder().replace("openai-community/", "");
  return `from zipfile import ZipFile

import torch
from lora_lib import PeftModel, load_pretrained

ZipFile("${name}.zip").extractall("${name}")
base, tokenizer = load_pretrained("${model}")
model = PeftModel.from_pretrained(base, "${name}")

ids = torch.tensor([tokenizer.encode(${JSON.stringify($("prompt").value)})])
out = base.generate(ids, 60, temperature=0.8, top_k=50)
print(tokenizer.decode(out[0].tolist()))
`;
}

function peftLines(name) {
  const mini = lab.model === MINI;
  const first = mini ? "from lora_lib.gpt2 import MINI_FOLDER  # where gpt2-mini lies\n" : "";
  return `${first}from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(${mini ? "MINI_FOLDER" : `"${folder()}"`}).float()
model = PeftModel.from_pretrained(base, "${name}")
`;
}

async function download() {
  try {
    save(`${folderName()}.zip`, zip(await (await ready()).ask("files", { view: view() })));
  } catch (error) {
    $("taken").textContent = error.message;
  }
}

// Hand a file to the reader, as a download.
function save(name, blob) {
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(blob),
    download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// The chosen files: two, or a zip of them.
async function bring(chosen) {
  say("file-status", "Reading the adapter …");
  const engine = await ready();
  const files = await adapterFilesIn(chosen, mostBytes(engine.config));
  const title = chosen[0].name.replace(/\.\w+$/, "");
  const name = `brought-${Date.now().toString(36)}`;
  const adapter = await engine.ask("keep", { name, files });
  const { r, alpha, kinds } = adapter;
  offerAdapter(adapter, `brought: ${title} (r ${r})`, files);
  chooseAdapter(name);
  await keepWhole({ id: name, title, r, alpha, kinds, losses: [], measured: [] }, files);
  return `${title} fits: rank ${r}, alpha ${alpha}, on ${kinds.join(", ")}. `;
}

export function prepareTaking() {
  on("changed", takingChanged);
  $("prompt").addEventListener("input", takingChanged); // the lines in Python begin with it
  takingChanged();
  $("download").addEventListener("click", download);
  $("file").addEventListener("change", async () => {
    const chosen = [...$("file").files];
    if (!chosen.length) return;
    try {
      say("file-status", await bring(chosen));
      $("file-status").append(wayUp());
    } catch (error) {
      say("file-status", `Not taken: ${error.message}`, true);
    }
    $("file").value = "";
  });
}
