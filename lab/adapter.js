// Adapters as values: a new one, one with its directions in order, one as the sliders leave it.
import { kindOf, layerShapes } from "./layers.js";
import { orderBySize } from "./svd.js";

// An adapter is {r, alpha, s, layers: {"h.0.attn.c_attn": {d, k, A, B}, …}}: A (r, d), which is A transposed, and
// B (r, k), both Float32Arrays.

// A new one: A random, B zero, so that it changes nothing yet. As `lora_lib.LoRA` begins.
export function newAdapter(config, { r, alpha, kinds }, random) {
  const layers = layerShapes(config, kinds);
  for (const layer of Object.values(layers)) {
    const bound = 1 / Math.sqrt(layer.d);
    layer.A = Float32Array.from({ length: r * layer.d }, () => (2 * random() - 1) * bound);
    layer.B = new Float32Array(r * layer.k);
  }
  return { r, alpha, s: alpha / r, layers };
}

// The same adapter with its directions in the order of their size: `rank` q of it is the first q.
export function ordered(adapter) {
  const layers = {};
  for (const [name, { d, k, A, B }] of Object.entries(adapter.layers)) {
    layers[name] = { d, k, ...orderBySize(A, B, adapter.r, d, k) };
  }
  return { ...adapter, layers };
}

// An adapter as the sliders leave it: its first `rank` directions, `strength` times as strong, some kinds left out.
// {} when nothing is left.
export function turned(layers, { rank, strength, off }) {
  const on = Object.entries(layers).filter(([name]) => !off.includes(kindOf(name)));
  return rank > 0 && strength > 0 ? Object.fromEntries(on) : {};
}
