// Adapters as values: a new one, one with its directions in order, one as the sliders leave it.
import { LabError } from "../errors.js";
import { kindOf, layerShapes } from "./layers.js";
import { orderBySize } from "./svd.js";

// An adapter is {r, alpha, s, layers: {"h.0.attn.c_attn": {d, k, A, B}, …}}: A (r, d), which is A transposed, and
// B (r, k), both Float32Arrays.

const MOST_ALPHA = 1e5; // beyond that nothing of the model is left

// Throws LabError for a rank or an alpha that no adapter has. `maxRank`: the shorter side of every layer.
export function checkSettings({ r, alpha }, maxRank, where = "") {
  if (!(Number.isInteger(r) && r >= 1 && r <= maxRank)) {
    throw new LabError(`${where}r must be a whole number from 1 to ${maxRank}, not ${JSON.stringify(r)}.`);
  }
  if (!(typeof alpha === "number" && alpha > 0 && alpha <= MOST_ALPHA)) {
    throw new LabError(
      `${where}${where && "lora_"}alpha must be a number above 0, at most ${MOST_ALPHA}, not ${JSON.stringify(alpha)}.`,
    );
  }
}

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

// The same adapter with its directions in the order of their size: `rank` q of it is the first q. For a large rank that
// takes seconds, so it is done layer by layer: call `step` until `done`; then `adapter` is the result.
export class Ordering {
  constructor(adapter) {
    this.left = Object.entries(adapter.layers);
    this.all = this.left.length;
    this.adapter = { ...adapter, layers: {} };
  }

  get done() {
    return this.left.length === 0;
  }

  step() {
    const [name, { d, k, A, B }] = this.left.shift();
    this.adapter.layers[name] = { d, k, ...orderBySize(A, B, this.adapter.r, d, k) };
  }
}

// An adapter as the sliders leave it: its first `rank` directions, `strength` times as strong, some kinds left out.
// {} when nothing is left.
export function turned(layers, { rank, strength, off }) {
  const on = Object.entries(layers).filter(([name]) => !off.includes(kindOf(name)));
  return rank > 0 && strength > 0 ? Object.fromEntries(on) : {};
}
