// The linear layers of a GPT-2, which LoRA can adapt: their names and their shapes.

// Inputs d and outputs k, in multiples of the model's width.
export const KINDS = {
  "attn.c_attn": { d: 1, k: 3 }, // queries, keys and values
  "attn.c_proj": { d: 1, k: 1 },
  "mlp.c_fc": { d: 1, k: 4 },
  "mlp.c_proj": { d: 4, k: 1 },
};

// {name: {d, k}} of all layers of these kinds, in the order in which `lora_lib` names them.
export function layerShapes({ C, depth }, kinds = Object.keys(KINDS)) {
  const names = Array.from({ length: depth }, (_, l) => kinds.map(kind => [`h.${l}.${kind}`, KINDS[kind]]));
  return Object.fromEntries(names.flat().map(([name, { d, k }]) => [name, { d: d * C, k: k * C }]));
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
