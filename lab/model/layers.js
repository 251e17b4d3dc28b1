// The linear layers of a model, which LoRA can adapt: their names and their shapes.

// Inputs d and outputs k of a layer of each kind, in the order in which `lora_lib` names them. C is the model's width,
// `inner` that of its MLP; a Llama has H heads of queries and K of keys and values, of D numbers each.
const GPT2 = {
  "attn.c_attn": ({ C }) => ({ d: C, k: 3 * C }), // queries, keys and values
  "attn.c_proj": ({ C }) => ({ d: C, k: C }),
  "mlp.c_fc": ({ C, inner }) => ({ d: C, k: inner }),
  "mlp.c_proj": ({ C, inner }) => ({ d: inner, k: C }),
};
const LLAMA = {
  "self_attn.q_proj": ({ C, H, D }) => ({ d: C, k: H * D }),
  "self_attn.k_proj": ({ C, K, D }) => ({ d: C, k: K * D }),
  "self_attn.v_proj": ({ C, K, D }) => ({ d: C, k: K * D }),
  "self_attn.o_proj": ({ C, H, D }) => ({ d: H * D, k: C }),
  "mlp.gate_proj": ({ C, inner }) => ({ d: C, k: inner }),
  "mlp.up_proj": ({ C, inner }) => ({ d: C, k: inner }),
  "mlp.down_proj": ({ C, inner }) => ({ d: inner, k: C }),
};
export const KINDS = Object.keys(GPT2);
export const LLAMA_KINDS = Object.keys(LLAMA);

// How Hugging Face names a model's parts: the whole without its head, and a block; and whether it keeps a weight as (d, k).
export const NAMES = {
  gpt2: { shapes: GPT2, whole: "transformer", block: "h", fanInFanOut: true },
  llama: { shapes: LLAMA, whole: "model", block: "layers", fanInFanOut: false },
};

// {name: {d, k}} of all layers of these kinds.
export function layerShapes(config, kinds) {
  const { shapes, block } = NAMES[config.family];
  const blocks = Array.from({ length: config.depth }, (_, l) =>
    (kinds ?? Object.keys(shapes)).map(kind => [`${block}.${l}.${kind}`, shapes[kind](config)]),
  );
  return Object.fromEntries(blocks.flat());
}

// The shortest side of any layer: beyond that a larger rank adds nothing.
export function largestRank(config) {
  return Math.min(...Object.values(layerShapes(config)).flatMap(({ d, k }) => [d, k]));
}

// 64 places in the weights of these layers, [layer, index of a number], as `lora_lib` chooses them. The numbers there
// are the base's fingerprint: they are saved beside an adapter.
export function samplePlaces(config, names) {
  const shapes = layerShapes(config);
  return Array.from({ length: 64 }, (_, i) => {
    const name = names[Math.floor((i * names.length) / 64)];
    const { d, k } = shapes[name];
    return [name, Math.floor(((i * 0.6180339887498949) % 1) * d * k)];
  });
}

export function kindOf(name) {
  return name.replace(/^\w+\.\d+\./, "");
}
