// The files of a GPT-2, opened and checked: config.json, model.safetensors, and a tokenizer's.

import { LabError } from "../errors.js";
import { readModelConfig } from "../model/config.js";
import { layerShapes } from "../model/layers.js";
import { openGguf } from "./gguf.js";
import { openLlama } from "./llama_files.js";
import { checkFloats, openSafetensors } from "./safetensors.js";
import { readTokenizer } from "./tokenizer_files.js";

export const GGUF = "model.gguf"; // a chat model, whole, under this name
export const TEMPLATE = "chat_template.jinja"; // beside the other files of a chat model

const FEWEST = 0.95; // of a model's tokens: some models have room for a few more than their tokenizer has
// Buffers that older files have, and the head, which is the embedding.
const LEFT_OUT = /(^|\.)(attn\.(masked_)?bias|lm_head\.weight)$/;

// `files`: {name: Blob, ArrayBuffer or string}. Returns {config, tokenizer, tensors}: `tensors` are those that a GPT-2
// of this config has, by name without "transformer.", see `openSafetensors`; their numbers are not read yet.
// A GGUF file is all in one, see gguf.js; with a chat template the files are a Llama's, see
// llama_files.js. Throws LabError if a file is missing, or does not fit the config.
export async function openModel(files) {
  if (files[GGUF]) return openGguf(blobOf(files, GGUF));
  if (files[TEMPLATE]) return openChat(files);
  const config = readModelConfig(await textOf(files, "config.json"));
  const tokenizer = await readTokenizer(name => (files[name] ? textOf(files, name) : null), config);
  const { tensors: found } = await openSafetensors(blobOf(files, "model.safetensors"));
  const tensors = checkTensors(found, config);
  const { size } = tokenizer.tokens;
  if (size < FEWEST * config.V) {
    throw new LabError(
      `The tokenizer has ${size} tokens, but the model has ${config.V}: it is another model's.`,
    );
  }
  return { config, tokenizer, tensors };
}

async function openChat(files) {
  const names = { config: "config.json", tokenizer: "tokenizer.json", template: TEMPLATE };
  const texts = {};
  for (const [part, name] of Object.entries(names)) texts[part] = await textOf(files, name);
  return openLlama(texts, blobOf(files, "model.safetensors"));
}

function blobOf(files, name) {
  if (!files[name]) throw new LabError(`${name} is missing.`);
  return files[name] instanceof Blob ? files[name] : new Blob([files[name]]);
}

function textOf(files, name) {
  return blobOf(files, name).text();
}

// {name: shape} of all tensors of a GPT-2.
function tensorShapes(config) {
  const { C, V, context, depth } = config;
  const shapes = { "wte.weight": [V, C], "wpe.weight": [context, C], "ln_f.weight": [C], "ln_f.bias": [C] };
  for (let l = 0; l < depth; l++) {
    for (const norm of ["ln_1", "ln_2"]) {
      shapes[`h.${l}.${norm}.weight`] = [C];
      shapes[`h.${l}.${norm}.bias`] = [C];
    }
  }
  for (const [name, { d, k }] of Object.entries(layerShapes(config))) {
    shapes[`${name}.weight`] = [d, k];
    shapes[`${name}.bias`] = [k];
  }
  return shapes;
}

function checkTensors(found, config) {
  const named = Object.entries(found).map(([name, tensor]) => [name.replace(/^transformer\./, ""), tensor]);
  const tensors = Object.fromEntries(named.filter(([name]) => !LEFT_OUT.test(name)));
  const shapes = tensorShapes(config);
  for (const [name, shape] of Object.entries(shapes)) {
    if (!tensors[name])
      throw new LabError(`model.safetensors has no ${name}, which the GPT-2 of config.json needs.`);
    if (`${tensors[name].shape}` !== `${shape}`) {
      throw new LabError(
        `model.safetensors: ${name} is ${tensors[name].shape.join(" × ")}, but config.json says ` +
          `${shape.join(" × ")}. Do both files belong to the same model?`,
      );
    }
    checkFloats(name, tensors[name]);
  }
  const strange = Object.keys(tensors).find(name => !(name in shapes));
  if (strange)
    throw new LabError(`model.safetensors: ${strange} is not part of the GPT-2 that config.json describes.`);
  return tensors;
}
