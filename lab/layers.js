// The linear layers of a GPT-2, which LoRA can adapt: their names and their shapes.

// Inputs d and outputs k of a layer of each kind. C is the model's width, `inner` that of its MLP.
const SHAPES = {
  "attn.c_attn": ({ C }) => ({ d: C, k: 3 * C }), // queries, keys and values
  "attn.c_proj": ({ C }) => ({ d: C, k: C }),
  "mlp.c_fc": ({ C, inner }) => ({ d: C, k: inner }),
  "mlp.c_proj": ({ C, inner }) => ({ d: inner, k: C }),
};
export const KINDS = Object.keys(SHAPES);

// {name: {d, k}} of all layers of these kinds, in the order in which `lora_lib` names them.
export function layerShapes(config, kinds = KINDS) {
  const blocks = Array.from({ length: config.depth }, (_, l) =>
    kinds.map(kind => [`h.${l}.${kind}`, SHAPES[kind](config)]),
  );
  return Object.fromEntries(blocks.flat());
}

export function kindOf(name) {
  return name.replace(/^h\.\d+\./, "");
}
