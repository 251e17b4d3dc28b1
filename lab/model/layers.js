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
  return name.replace(/^h\.\d+\./, "");
}
