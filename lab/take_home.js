// Take an adapter home as the two files that `lora_lib` and Hugging Face PEFT open, or bring one.
const ZIP_NAME = () => `${$("adapter").value}-adapter`;

// Whether the sliders leave anything of the adapter.
function anythingLeft() {
  const { adapter, rank, strength, off } = view();
  return lab.kept.has(adapter) && rank > 0 && strength > 0 && off.length < Object.keys(KIND_NAMES).length;
}

function takingChanged() {
  const { adapter, rank, strength } = view();
  const some = Boolean(lab.engine) && anythingLeft();
  for (const id of ["download", "download-weights", "download-config"]) $(id).disabled = !some;
  const name = $("adapter").selectedOptions[0].textContent;
  if (lab.engine) {
    const as = `as the sliders have it: rank ${rank}, strength ${strength} × s`;
    $("taken").textContent = some
      ? `${name}, ${as}.`
      : "With rank or strength at zero, or no layer chosen, nothing is left to take home.";
  }
  $("python").textContent = libraryLines(ZIP_NAME());
  $("peft").textContent = peftLines(ZIP_NAME());
}

// A string as Python writes it.
function python(text) {
  return JSON.stringify(text);
}

function libraryLines(name) {
  return `from zipfile import ZipFile

import torch
from lora_lib import PeftModel, load_pretrained

ZipFile("${name}.zip").extractall("${name}")
base, tokenizer = load_pretrained("gpt2-mini")
model = PeftModel.from_pretrained(base, "${name}")

ids = torch.tensor([tokenizer.encode(${python($("prompt").value)})])
out = base.generate(ids, 60, temperature=0.8, top_k=50)
print(tokenizer.decode(out[0].tolist()))
`;
}

function peftLines(name) {
  return `from lora_lib.pretrained import MINI_FOLDER  # where gpt2-mini lies
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(MINI_FOLDER)
model = PeftModel.from_pretrained(base, "${name}")
`;
}

async function download(save_) {
  try {
    save_(await lab.engine.ask("files", { view: view() }));
  } catch (error) {
    $("taken").textContent = error.message;
  }
}

// The chosen files: two, or a zip of them.
async function bring(chosen) {
  const files = {};
  for (const file of chosen) {
    const buffer = await file.arrayBuffer();
    Object.assign(
      files,
      /\.zip$/i.test(file.name) ? await unzip(buffer) : { [standardName(file.name)]: buffer },
    );
  }
  const title = chosen[0].name.replace(/\.\w+$/, "");
  const name = `brought-${lab.kept.size}`;
  const { r, alpha, kinds } = await lab.engine.ask("keep", { name, files });
  addAdapter(name, r, `brought: ${title} (r ${r})`);
  return `${title} fits: rank ${r}, alpha ${alpha}, beside ${kinds.join(", ")}. It is chosen above.`;
}

// Browsers number a second download: "adapter_config (1).json".
function standardName(name) {
  if (/\.json$/i.test(name)) return "adapter_config.json";
  return /\.safetensors$/i.test(name) ? "adapter_model.safetensors" : name;
}

function prepareTaking() {
  takingChanged();
  $("prompt").addEventListener("input", takingChanged);
  $("download").addEventListener("click", () => download(files => save(`${ZIP_NAME()}.zip`, zip(files))));
  for (const [id, name] of [
    ["weights", "adapter_model.safetensors"],
    ["config", "adapter_config.json"],
  ]) {
    $(`download-${id}`).addEventListener("click", () => download(files => save(name, files[name])));
  }
  $("file").addEventListener("change", async () => {
    const chosen = [...$("file").files];
    if (!chosen.length) return;
    try {
      say("file-status", await bring(chosen));
    } catch (error) {
      say("file-status", `Not taken: ${error.message}`, true);
    }
    $("file").value = "";
  });
}
