// A model's sizes, from its config.json.
import { LabError } from "../errors.js";
import { jsonOf } from "../files/json.js";

// Fields that say how a GPT-2 computes, with the values that the lab computes. The first is the default.
const AS_IN_GPT2 = {
  model_type: ["gpt2"],
  activation_function: ["gelu_new", "gelu_pytorch_tanh"],
  scale_attn_weights: [true],
  scale_attn_by_inverse_layer_idx: [false],
  add_cross_attention: [false],
  tie_word_embeddings: [true],
};

// {family: "gpt2", C, H, V, depth, context, inner, epsilon, endOfText}: width, heads, vocabulary, blocks, the most tokens that it
// reads, the MLP's width, LayerNorm's epsilon, and the token that ends a text, or null.
// Throws LabError for a model that is not a GPT-2, or has sizes that the kernels cannot compute.
export function readModelConfig(text) {
  const file = jsonOf(text, "config.json");
  for (const [field, values] of Object.entries(AS_IN_GPT2)) {
    const value = file[field] ?? (field === "model_type" ? undefined : values[0]);
    if (values.includes(value)) continue;
    const wanted = values.map(one => JSON.stringify(one)).join(" or ");
    const llama =
      file.model_type === "llama" ? " The page of the chat model opens a Llama, SmolLM2-Instruct." : "";
    throw new LabError(
      `config.json: ${field} is ${JSON.stringify(value)}, but this page computes ${wanted}, as in GPT-2.${llama}`,
    );
  }
  const config = {
    family: "gpt2",
    C: size(file, "n_embd"),
    H: size(file, "n_head"),
    V: size(file, "vocab_size"),
    depth: size(file, "n_layer"),
    context: size(file, "n_positions"),
    inner: size(file, "n_inner", 4 * file.n_embd),
    epsilon: file.layer_norm_epsilon ?? 1e-5,
    endOfText: file.eos_token_id ?? null,
  };
  checkSizes(config);
  return config;
}

function size(file, field, otherwise) {
  const value = file[field] ?? otherwise;
  if (Number.isInteger(value) && value > 0 && value <= 2 ** 24) return value;
  throw new LabError(
    `config.json: ${field} must be a whole number above 0, ${value === undefined ? "but it is missing" : `not ${JSON.stringify(value)}`}.`,
  );
}

function checkSizes({ C, H, V, inner, epsilon, endOfText }) {
  const head = C / H;
  if (!Number.isInteger(head)) {
    throw new LabError(`config.json: n_embd (${C}) must be divisible by n_head (${H}).`);
  }
  if (C % 8 || inner % 8 || head % 4) {
    throw new LabError(
      `config.json: the width of the model (${C}) and of its MLP (${inner}) must be multiples of 8, ` +
        `and the width of a head (${head}) a multiple of 4: the lab computes 8 or 4 numbers at a time.`,
    );
  }
  if (!(epsilon > 0 && epsilon < 1)) {
    throw new LabError(
      `config.json: layer_norm_epsilon must be a number between 0 and 1, not ${JSON.stringify(epsilon)}.`,
    );
  }
  if (endOfText !== null && !(Number.isInteger(endOfText) && endOfText >= 0 && endOfText < V)) {
    throw new LabError(
      `config.json: eos_token_id must be a token below vocab_size (${V}), not ${JSON.stringify(endOfText)}.`,
    );
  }
}
