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
  attention([q, k, v], p, y, text) {
    for (const part of text.parts) {
      const [shares, out] = this.sharesAndOut(p, y, part, text);
      this.kernels.attention(...this.seen(q, k, v, part, text), shares, out);
    }
  }

  // For the gradient g (N, H·D) at y.
  attentionBackward([q, k, v], p, g, [dq, dk, dv], text) {
    for (const { x, width, first } of [dq, dk, dv]) if (!first) this.kernels.zero(x, text.N * width);
    for (const part of text.parts) {
      const gradients = [fromRow(dq, part.first), fromRow(dk, 0), fromRow(dv, 0)];
      const places = [...this.sharesAndOut(p, g, part, text), ...gradients];
      this.kernels.attention_backward(...this.seen(q, k, v, part, text), ...places, this.room.dp);
    }
  }

  // What attention reads in a part of the text, as the kernels take it.
  seen(q, k, v, { first, T, past }, { cached }) {
    const { H, K, D } = this;
    const keys = [fromRow(k, 0), fromRow(v, 0), k.width];
    return [fromRow(q, first), q.width, ...keys, past, cached ? past : first, T, H, K, D];
  }

  sharesAndOut(p, y, { first }, { T }) {
    const { H, D } = this;
    return [p + 4 * first * H * padded(T), y + 4 * first * H * D];
  }

  rope(x, heads, { parts }, sign = 1) {
    const { kernels, D, angles } = this;
    for (const { first, T, past } of parts)
      kernels.rope(x + 4 * first * heads * D, T, past, heads, D, angles, sign);
  }

  ropeBackward(g, heads, text) {
    this.rope(g, heads, text, -1);
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
  embed(x, { parts }) {
    const { kernels, room, wte, wpe, C } = this;
    for (const { first, T, past } of parts) {
      const places = wpe && wpe + 4 * past * C;
      kernels.embed(room.ids + 4 * first, T, C, wte.panels, wte.packed, places, x + 4 * first * C);
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
    this.roomFor("writing", { N: PIECE, M: 1, T: this.context });
    this.cacheFor(this.read + ids.length);
    for (let at = 0; at < ids.length; at += PIECE) this.readPiece(ids.slice(at, at + PIECE));
    this.headForward(1, (ids.length - 1) % PIECE);
    return this.memory.floats(this.room.logits, this.V);
  }

  readPiece(ids) {
    const T = ids.length;
    this.memory.ints(this.room.ids, T).set(ids);
    const { read: past } = this;
    this.forward({ T, N: T, past, cached: true, parts: [{ first: 0, T, past }] });
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
    const { ids, next, text } = laidOut(rows, targets);
    const { N } = text;
    const counting = [...next.keys()].filter(n => next[n] >= 0); // only these tokens need logits
    const M = counting.length;
    this.roomFor("training", { N, M, T: text.T });
    const { room } = this;
    memory.ints(room.ids, N).set(ids);
    this.forward(text);
    this.together(room.x.at(-1), counting, N);
    this.headForward(M);

    memory.ints(room.targets, M).set(counting.map(n => next[n]));
    kernels.cross_entropy(room.logits, room.targets, M, V, 1 / wanted, room.losses); // logits become their gradient
    const parts = memory.floats(room.losses, 2 * M);
    let total = 0;
    for (let n = 0; n < M; n++) total += Math.log(parts[2 * n]) + parts[2 * n + 1];
    if (!gradients) return total / wanted;
    this.headBackward(M);
    this.apart(room.g, counting, N);
    this.backward(text);
    return total / wanted;
  }

  // These rows of x (N, C), in their order, become its first.
  together(x, rows, N) {
    const { memory, C } = this;
    const all = memory.floats(x, N * C);
    for (const [first, n] of rows.entries()) all.copyWithin(first * C, n * C, (n + 1) * C);
  }

  // The first rows of x (N, C) go to these places, and all others become zero.
  apart(x, rows, N) {
    const { memory, C } = this;
    const all = memory.floats(x, N * C);
    const firsts = all.slice(0, rows.length * C);
    all.fill(0);
    for (const [first, n] of rows.entries()) all.set(firsts.subarray(first * C, (first + 1) * C), n * C);
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

  // Room for what a pass over N tokens computes, in sequences of up to T, with the logits of M of them. It is kept until a
  // larger one is needed.
  roomFor(purpose, { N, M, T }) {
    const sizes = { N, M, p: N * this.H * padded(T), dp: QUERIES * padded(T), rank: this.rank };
    const larger = this.larger(purpose, sizes);
    if (larger) {
      for (const begin of this.rooms[purpose]?.pieces ?? []) this.memory.free(begin);
      this.rooms[purpose] = null; // if there is no room for the new one
      this.rooms[purpose] = this.memory.allOrNone(() => this.newRoom(larger, purpose === "training"));
    }
    this.room = this.rooms[purpose];
  }
}

// What a pass over these rows reads. Rows of chats begin with the same tokens, the system's words. Before the first target
// that counts it is enough to read such tokens once: the first part of the text. Each other part is a row's own tokens,
// which go on after them: `T` tokens from `first` on, after `past` that are the text's first.
function laidOut(rows, targets) {
  const [{ length: T }] = rows;
  const shared = sharedStart(rows, targets);
  const own = list => list.flatMap(row => row.slice(shared));
  const ids = [...rows[0].slice(0, shared), ...own(rows)];
  const next = [...targets[0].slice(0, shared), ...own(targets)];
  const parts = rows.map((_, b) => ({ first: shared + b * (T - shared), T: T - shared, past: shared }));
  if (shared) parts.unshift({ first: 0, T: shared, past: 0 });
  return { ids, next, text: { T, N: ids.length, parts, cached: false } };
}

function sharedStart(rows, targets) {
  const isSame = n => rows.every((row, b) => row[n] === rows[0][n] && targets[b][n] < 0);
  let count = 0;
  while (count < rows[0].length - 1 && isSame(count)) count++;
  return count;
}

// Where a row begins in a part of a tensor, see `whole`.
function fromRow({ x, width, first }, row) {
  return x + 4 * (row * width + first);
}

function padded(count) {
  return Math.ceil(count / 4) * 4;
}
