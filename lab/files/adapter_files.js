// An adapter as the two files that `lora_lib` and Hugging Face PEFT open.
//
// `lora_A.weight` is (r, d), as A is kept here; `lora_B.weight` is (k, r), our B transposed.
import FIELDS from "../../lora_lib/adapters/peft_fields.json" with { type: "json" };
import { LabError } from "../errors.js";
import { checkSettings, turned } from "../model/adapter.js";
import { largestRank, layerShapes, NAMES } from "../model/layers.js";
import { jsonOf } from "./json.js";
import { floatsOf, openSafetensors, writeSafetensors } from "./safetensors.js";

const CONFIG_FILE = "adapter_config.json";
const WEIGHTS_FILE = "adapter_model.safetensors";

// {file name: bytes} of an adapter as the sliders leave it, for the base `model`.
export async function adapterFiles(adapter, view, model) {
  const { rank: r, strength } = view;
  const layers = turned(adapter.layers, view);
  const { whole, fanInFanOut } = NAMES[model.config.family];
  const tensors = {};
  for (const [name, { d, k, A, B }] of Object.entries(layers)) {
    const path = `base_model.model.${whole}.${name}`;
    tensors[`${path}.lora_A.weight`] = { shape: [r, d], data: A.slice(0, r * d) };
    tensors[`${path}.lora_B.weight`] = { shape: [k, r], data: transposed(B, r, k) };
  }
  const config = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    r,
    lora_alpha: strength * adapter.s * r,
    lora_dropout: 0,
    target_modules: Object.keys(layers).map(name => `${whole}.${name}`),
    bias: "none",
    use_rslora: false,
    fan_in_fan_out: fanInFanOut, // Hugging Face's GPT-2 keeps its weights as (d, k)
    inference_mode: true,
    base_model_name_or_path: model.name ?? null,
  };
  const numbers = (await model.baseSample(Object.keys(layers))).map(w => w.toPrecision(4));
  const metadata = { format: "pt", base_sample: numbers.join(" ") };
  return {
    [WEIGHTS_FILE]: writeSafetensors(tensors, metadata),
    [CONFIG_FILE]: new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`),
  };
}

// The bytes of the largest adapter's weights, in float32, with its header.
export function mostBytes(config) {
  const numbers = Object.values(layerShapes(config)).reduce((sum, { d, k }) => sum + config.C * (d + k), 0);
  return 4 * numbers + 2 ** 20;
}

// The adapter in these files, {name: ArrayBuffer}, which `lora_lib`, PEFT or this page wrote.
// Throws LabError, which says why, for one that does not fit the base `model`.
export async function readAdapter(files, model) {
  for (const name of [CONFIG_FILE, WEIGHTS_FILE]) {
    if (!files[name])
      throw new LabError(`${name} is missing: choose both of an adapter's files, or a zip of them.`);
  }
  const {
    r,
    lora_alpha: alpha,
    use_rslora: rooted,
  } = readConfig(files[CONFIG_FILE], largestRank(model.config));
  const { metadata, tensors } = await openSafetensors(new Blob([files[WEIGHTS_FILE]]), WEIGHTS_FILE);
  const { whole } = NAMES[model.config.family];
  const layers = {};
  for (const [name, { d, k }] of Object.entries(layerShapes(model.config))) {
    const path = `base_model.model.${whole}.${name}`;
    const A = await take(tensors, `${path}.lora_A.weight`, [r, d]);
    const B = await take(tensors, `${path}.lora_B.weight`, [k, r]);
    if (Boolean(A) !== Boolean(B)) throw new LabError(`${name} has only one of A and B.`);
    if (A) layers[name] = { d, k, A, B: transposed(B, k, r) };
  }
  const [strange] = Object.keys(tensors);
  if (strange)
    throw new LabError(
      `${strange} is not part of a LoRA adapter for this model: was it made for another base?`,
    );
  if (!Object.keys(layers).length) throw new LabError("This adapter adapts no layer.");
  checkBase(metadata.base_sample, await model.baseSample(Object.keys(layers)));
  return { r, alpha, s: alpha / (rooted ? Math.sqrt(r) : r), layers };
}

// The numbers of a tensor, which is taken out of `tensors`; undefined if it is not there.
async function take(tensors, name, shape) {
  const tensor = tensors[name];
  delete tensors[name];
  if (!tensor) return undefined;
  if (`${tensor.shape}` !== `${shape}`) {
    throw new LabError(
      `${name} is ${tensor.shape.join(" × ")}, but this model needs ${shape.join(" × ")}: was it made for another base?`,
    );
  }
  const floats = await floatsOf(name, tensor);
  if (!floats.every(Number.isFinite)) throw new LabError(`${name} contains NaN or infinity.`);
  return floats;
}

// The fields that this page reads or may ignore; the tensors say which layers an adapter has. Any other field that is set
// is refused, never ignored. The table is `lora_lib`'s.
const READ = `r lora_alpha use_rslora target_modules exclude_modules layers_to_transform layers_pattern lora_dropout
  task_type base_model_name_or_path`;
const KNOWN = new Set([...READ.split(/\s+/), ...Object.keys(FIELDS.ignored)]);

// `maxRank`: the shorter side of every layer.
function readConfig(buffer, maxRank) {
  const config = jsonOf(buffer, CONFIG_FILE);
  if (config.peft_type !== "LORA")
    throw new LabError(`${CONFIG_FILE} does not describe a LoRA adapter (peft_type must be "LORA").`);
  for (const [key, value] of Object.entries(config)) {
    const empty = !value || (typeof value === "object" && Object.keys(value).length === 0);
    const off = Object.hasOwn(FIELDS.off, key) ? FIELDS.off[key] : [];
    if (empty || KNOWN.has(key) || off.includes(value)) continue;
    const why = Object.hasOwn(FIELDS.refused, key) ? `: ${FIELDS.refused[key]}` : "";
    throw new LabError(`${CONFIG_FILE}: ${key} = ${JSON.stringify(value)} is not supported here${why}.`);
  }
  checkSettings({ r: config.r, alpha: config.lora_alpha }, maxRank, `${CONFIG_FILE}: `);
  return config;
}

// An adapter that `lora_lib` saved has a sample of the base's weights with it: another base is noticed.
function checkBase(saved, own) {
  const found = (saved ?? "").split(" ").filter(Boolean).map(Number);
  if (!found.length) return;
  const same =
    found.length === own.length &&
    found.every((w, i) => Math.abs(w - own[i]) <= 2 ** -8 * Math.abs(own[i]) + 1e-7);
  if (!same) throw new LabError("This adapter was made for a model with different weights.");
}

// M (rows, columns) as (columns, rows).
function transposed(M, rows, columns) {
  const out = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) out[j * rows + i] = M[i * columns + j];
  }
  return out;
}
