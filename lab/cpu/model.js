// A transformer on the processor, see model/transformer.js: its operations in WebAssembly, and how it writes and learns.
//
// What the worker needs of a model, whatever computes it: `place`, `use`, `restart`, `next`, `loss`, `step` and
// `baseSample`. The worker awaits all but `use` and `restart`.
//
// A tensor is a number here: its address in WebAssembly's memory. The arithmetic is in kernels.c.

import { LabError } from "../errors.js";
import { familyOn } from "../model/families.js";
import { wantedIn } from "../model/targets.js";
import { Transformer } from "../model/transformer.js";
import { LoadedAdapter } from "./adapter.js";
import { Memory } from "./memory.js";
import { Loader, weightAt } from "./weights.js";

const PIECE = 64; // tokens of a prompt that are read at a time
const FIRST_CACHE = 128; // tokens
const QUERIES = 16; // whose gradients attention computes at a time, see kernels.c

export class CPUModel extends Transformer {
  // All weights out of `source`, see `openModel`. `wasm`: the bytes of kernels.wasm. `exact`: keep float32 weights as they
  // are; otherwise each takes 16 bits. `news` hears the share that is loaded.
  static async load({ config, tensors }, { wasm, exact }, news) {
    const model = new (familyOn(CPUModel, config))(config, wasm);
    const loader = new Loader(model, tensors, exact, news);
    await model.loadFrom(loader);
    loader.free();
    return Object.assign(model, loader.result);
  }

  constructor(config, wasm) {
    super(config);
    this.memory = new Memory();
    const module = new WebAssembly.Module(wasm);
    this.kernels = new WebAssembly.Instance(module, { env: { memory: this.memory.wasm } }).exports;
    this.memory.top = Math.ceil(this.kernels.heap_base() / 64) * 64;
    this.L = 8 * Math.ceil(config.V / 8); // a row of logits
    this.caches = []; // what attention keeps of each token read, block by block
    this.cached = 0; // tokens for which the caches have room
    this.use(null);
  }

  free() {
    this.memory = null;
  }

  get megabytes() {
    return this.memory.wasm.buffer.byteLength / 1e6;
  }

  // ---- Operations ----------------------------------------------------------------------------------------------

  matmul(x, N, { d, k, panels, packed, bias = 0 }, y) {
    this.kernels.matmul(x, N, d, panels, packed, k, bias, y);
  }

  matmulBackward(g, N, { d, k, panels, packed }, dx) {
    this.kernels.matmul_transposed(g, N, k, panels, packed, d, dx);
  }

  project(x, N, m, M, r, s, c) {
    this.kernels.project(x, N, m, M, r, s, c);
  }

  expand(c, N, r, M, m, y) {
    this.kernels.expand(c, N, r, M, m, y);
  }

  // G is zero before: with several workers, gradients are added.
  outer(c, N, r, g, m, G) {
    this.kernels.outer(c, N, r, g, m, G);
  }

  layerNorm(x, N, weight, bias, y, kept, first) {
    this.kernels.norm(x + 4 * first * this.C, N, this.C, weight, bias, this.epsilon, y, kept);
  }

  layerNormBackward(x, N, weight, kept, g, dx) {
    this.kernels.norm_backward(x, N, this.C, weight, kept, g, dx);
  }

  rmsNorm(x, N, weight, y, kept, first) {
    this.kernels.rms_norm(x + 4 * first * this.C, N, this.C, weight, this.epsilon, y, kept);
  }

  rmsNormBackward(x, N, weight, kept, g, dx) {
    this.kernels.rms_norm_backward(x, N, this.C, weight, kept, g, dx);
  }

  // y (N, H·D) from queries, keys and values; p takes each token's shares of all before it.
  attention([q, k, v], p, y, { B, T, past }) {
    const { kernels, H, K, D } = this;
    for (let b = 0; b < B; b++) {
      const [queries, keys, values] = [q, k, v].map(part => sequence(part, b, T));
      const shares = p + 4 * b * H * T * padded(T);
      const out = y + 4 * b * T * H * D;
      kernels.attention(queries, q.width, keys, values, k.width, T, past, H, K, D, shares, out);
    }
  }

  // For the gradient g (N, H·D) at y.
  attentionBackward([q, k, v], p, g, [dq, dk, dv], { B, T, N }) {
    const { kernels, H, K, D } = this;
    const { dp } = this.room;
    for (const { x, width, first } of [dq, dk, dv]) if (!first) kernels.zero(x, N * width);
    for (let b = 0; b < B; b++) {
      const [queries, keys, values, ...gradients] = [q, k, v, dq, dk, dv].map(part => sequence(part, b, T));
      const shares = p + 4 * b * H * T * padded(T);
      const out = g + 4 * b * T * H * D;
      kernels.attention_backward(
        ...[queries, q.width, keys, values, k.width, shares, out, T, H, K, D, ...gradients, dp],
      );
    }
  }

  rope(x, heads, { N, T, past }) {
    this.kernels.rope(x, N, T, past, heads, this.D, this.angles, 1);
  }

  ropeBackward(g, heads, { N, T }) {
    this.kernels.rope(g, N, T, 0, heads, this.D, this.angles, -1);
  }

  // u becomes the slope, which is all that the backward pass needs.
  gelu(u, f, N, width) {
    this.kernels.gelu(u, f, N * width);
  }

  geluBackward(u, g, N, width) {
    this.kernels.multiply(u, g, N * width);
  }

  swiglu(gate, up, f, N, width) {
    this.kernels.swiglu(gate, up, f, N * width);
  }

  swigluBackward(g, gate, up, N, width) {
    this.kernels.swiglu_backward(g, gate, up, N * width);
  }

  add(x, y, N, width) {
    this.kernels.add(x, y, N * width);
  }

  zero(x, N, width) {
    this.kernels.zero(x, N * width);
  }

  // x (N, C) = the embedding of each of the room's ids, in a GPT-2 + that of its position.
  embed(x, { B, T, past }) {
    const { kernels, room, wte, wpe, C } = this;
    const places = wpe && wpe + 4 * past * C;
    for (let n = 0; n < B * T; n += T) {
      kernels.embed(room.ids + 4 * n, T, C, wte.panels, wte.packed, places, x + 4 * n * C);
    }
  }

  append(x, cache, width, { N, past }) {
    this.memory.floats(cache + 4 * past * width, N * width).set(this.memory.floats(x, N * width));
  }

  alloc(count) {
    return this.memory.alloc(count);
  }

  padded(width) {
    return width;
  }

  weightAt(layer, row, column) {
    return weightAt(this.memory, layer, row, column);
  }

  // ---- Writing -------------------------------------------------------------------------------------------------

  // Read `ids`, which go on after the tokens read before; returns the logits (V) after the last of them.
  async next(ids) {
    if (this.read + ids.length > this.context) {
      throw new LabError(`The model reads at most ${this.context} tokens.`);
    }
    this.roomFor("writing", PIECE, this.context);
    this.cacheFor(this.read + ids.length);
    for (let at = 0; at < ids.length; at += PIECE) this.readPiece(ids.slice(at, at + PIECE));
    this.headForward(1, (ids.length - 1) % PIECE);
    return this.memory.floats(this.room.logits, this.V);
  }

  readPiece(ids) {
    const T = ids.length;
    this.memory.ints(this.room.ids, T).set(ids);
    this.forward({ B: 1, T, N: T, past: this.read, cached: true });
    this.read += T;
  }

  // Room in the caches for so many tokens. What is in them stays.
  cacheFor(tokens) {
    if (tokens <= this.cached) return;
    const { memory, read, cacheWidths } = this;
    const cached = Math.min(this.context, Math.max(FIRST_CACHE, 2 * tokens));
    const parts = Object.entries(cacheWidths);
    const cache = () =>
      Object.fromEntries(parts.map(([part, width]) => [part, memory.alloc(cached * width)]));
    const caches = memory.allOrNone(() => Array.from({ length: this.depth }, cache));
    this.caches.forEach((old, l) => {
      for (const [part, width] of parts) {
        memory.floats(caches[l][part], read * width).set(memory.floats(old[part], read * width));
        memory.free(old[part]);
      }
    });
    Object.assign(this, { caches, cached });
  }

  // ---- Learning ------------------------------------------------------------------------------------------------

  // One step of AdamW for the adapter in use, which was placed to learn. `step` counts from 1. Returns the loss before
  // it. Where that is not finite, or above `most`, nothing is learned: the weights of the last sound loss come back.
  // `crew`: the workers that share the rows, see helpers.js, or null.
  async step(loaded, rows, targets, { step, rate, most, crew = null }) {
    const loss = crew
      ? await crew.lossAndGradients(this, loaded, rows, targets)
      : this.lossAndGradients(rows, targets, true);
    if (loss <= most) {
      loaded.keep();
      loaded.update(step, rate);
    } else loaded.goBack();
    return loss;
  }

  // The mean loss over all targets that count, in nats a token. rows and targets: B lists of T token ids each; a target of
  // -100 does not count.
  async loss(rows, targets) {
    return this.lossAndGradients(rows, targets, false);
  }

  // With `gradients`, those at A and B of the adapter in use are added to its dA and dB. `wanted`: the number of
  // targets that the mean is over, if these are a part of them.
  lossAndGradients(rows, targets, gradients, wanted = wantedIn(targets)) {
    const { kernels, memory, V } = this;
    const [B, T] = [rows.length, rows[0].length];
    const N = B * T;
    const text = { B, T, N, past: 0, cached: false };
    this.roomFor("training", N, T);
    const { room } = this;
    memory.ints(room.ids, N).set(rows.flat());
    this.forward(text);
    this.headForward(N);

    memory.ints(room.targets, N).set(targets.flat());
    kernels.cross_entropy(room.logits, room.targets, N, V, 1 / wanted, room.losses); // logits become their gradient
    const parts = memory.floats(room.losses, 2 * N);
    let total = 0;
    for (let n = 0; n < N; n++) total += Math.log(parts[2 * n]) + parts[2 * n + 1];
    if (gradients) this.backward(text);
    return total / wanted;
  }

  // ---- Adapters and room ---------------------------------------------------------------------------------------

  // Copy an adapter into the model's memory; `learning` if it will be trained.
  async place(adapter, learning = false) {
    return new LoadedAdapter(this, adapter, learning);
  }

  // Use a placed adapter as the sliders are set, `view`: {rank, strength, off}. null is the base alone.
  use(loaded, view) {
    this.bypasses = loaded?.bypasses(view) ?? {};
    this.rank = Math.max(1, ...Object.values(this.bypasses).map(bypass => bypass.r));
  }

  // Room for what a pass over N tokens computes, in sequences of up to T. It is kept until a larger one is needed.
  roomFor(purpose, N, T) {
    const sizes = { N, p: N * this.H * padded(T), dp: QUERIES * padded(T), rank: this.rank };
    const larger = this.larger(purpose, sizes);
    if (larger) {
      for (const begin of this.rooms[purpose]?.pieces ?? []) this.memory.free(begin);
      this.rooms[purpose] = null; // if there is no room for the new one
      this.rooms[purpose] = this.memory.allOrNone(() => this.newRoom(larger, purpose === "training"));
    }
    this.room = this.rooms[purpose];
  }
}

// Where the b-th sequence of T tokens begins in a part of a tensor, see `whole`.
function sequence({ x, width, first }, b, T) {
  return x + 4 * (b * T * width + first);
}

function padded(count) {
  return Math.ceil(count / 4) * 4;
}
