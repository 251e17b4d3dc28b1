// A transformer with LoRA, on the processor: W' = W + s·A·B, as in `lora_lib.gpt2` and `lora_lib.lora_linear`. What a
// GPT-2 and a Llama do each in their way is in gpt2.js and llama.js.
//
// What the worker needs of a model, whatever computes it: `place`, `use`, `restart`, `next`, `loss`, `step` and
// `baseSample`. The worker awaits all but `use` and `restart`.
//
// Each layer's backward pass stands below its forward pass. Forward: the layer's output from its input. Backward:
// `g`, the loss's gradient at the output, becomes the gradient at the input, and, in a LoRA layer, at A and B.
// Nothing else is trained, so nothing else needs a gradient.
//
// Notation: B sequences of T tokens each, N = B·T tokens in all; C the model's width, V its vocabulary, H heads;
// a layer has d inputs and k outputs; r is the rank. A tensor is a number here: its address in WebAssembly's
// memory. Its shape stands in a comment. The arithmetic is in kernels.c.

import { LabError } from "../errors.js";
import { layerShapes, NAMES, samplePlaces } from "../model/layers.js";
import { wantedIn } from "../model/targets.js";
import { LoadedAdapter } from "./adapter.js";
import { Memory } from "./memory.js";
import { Loader, weightAt } from "./weights.js";

const PIECE = 64; // tokens of a prompt that are read at a time
const FIRST_CACHE = 128; // tokens
const QUERIES = 16; // whose gradients attention computes at a time, see kernels.c

// A family of models says {attention, mlp}: the kinds of the last layer of each; `cacheWidths`: what is kept of each
// token that was read; and how it does `loadFrom`, `norm`, `attend`, `widen`, each with its backward pass, and their room.
export class Model {
  // `wasm`: the bytes of kernels.wasm.
  constructor(config, wasm) {
    this.config = config;
    Object.assign(this, config);
    this.memory = new Memory();
    const module = new WebAssembly.Module(wasm);
    this.kernels = new WebAssembly.Instance(module, { env: { memory: this.memory.wasm } }).exports;
    this.memory.top = Math.ceil(this.kernels.heap_base() / 64) * 64;
    this.kinds = Object.keys(NAMES[config.family].shapes);
    this.blockName = NAMES[config.family].block;
    this.shapes = layerShapes(config);
    this.L = 8 * Math.ceil(config.V / 8); // a row of logits
    this.caches = []; // what attention keeps of each token read, block by block
    this.cached = 0; // tokens for which the caches have room
    this.rooms = {};
    this.restart();
    this.use(null);
  }

  // Take all weights out of `tensors`, see `openModel`. `exact`: keep float32 weights as they are; otherwise each takes 16
  // bits. `news` hears the share that is loaded.
  async load(tensors, exact, news) {
    const loader = new Loader(this, tensors, exact, news);
    await this.loadFrom(loader);
    loader.free();
    return Object.assign(this, loader.result);
  }

  free() {
    this.memory = null;
  }

  get megabytes() {
    return this.memory.wasm.buffer.byteLength / 1e6;
  }

  // ---- A linear layer with LoRA beside it ----------------------------------------------------------------------

  // y = x·W + bias + s·(x·A)·B.  x (N, d), y (N, k); c (N, r) is kept for the backward pass.
  linearForward(l, kind, x, N, y, c) {
    const { d, k, panels, packed, bias } = this.blocks[l][kind];
    this.kernels.matmul(x, N, d, panels, packed, k, bias, y);
    const lora = this.bypasses[`${this.blockName}.${l}.${kind}`];
    if (!lora) return;
    this.kernels.project(x, N, d, lora.A, lora.r, lora.s, c); // c = s·x·A
    this.kernels.expand(c, N, lora.r, lora.B, k, y); //          y += c·B
  }

  // g (N, k) is the gradient at y. dx (N, d) becomes the gradient at x, or is 0 where nobody needs it.
  linearBackward(l, kind, x, c, g, N, dx) {
    const { d, k, panels, packed } = this.blocks[l][kind];
    if (dx) this.kernels.matmul_transposed(g, N, k, panels, packed, d, dx); // dx = g·Wᵀ
    const lora = this.bypasses[`${this.blockName}.${l}.${kind}`];
    if (lora) this.loraBackward(lora, d, k, x, c, g, N, dx);
  }

  // LoRA's own backward pass. A is kept transposed, (r, d), as in an adapter's file, and so is its gradient.
  loraBackward({ A, B, dA, dB, r, s }, d, k, x, c, g, N, dx) {
    const { h } = this.room;
    this.kernels.project(g, N, k, B, r, s, h); //    h = s·g·Bᵀ       (N, r)
    this.kernels.outer(h, N, r, x, d, dA); //        dA += xᵀ·h       (d, r)
    this.kernels.outer(c, N, r, g, k, dB); //        dB += cᵀ·g       (r, k), with c = s·x·A
    if (dx) this.kernels.expand(h, N, r, A, d, dx); // dx += h·Aᵀ     (N, d)
  }

  // ---- A block: attention, then MLP, each added to the residual stream -----------------------------------------

  // x (N, C) to out (N, C). `kept` takes what the backward pass needs; `past` tokens of the sequence were read before.
  blockForward(l, x, out, kept, B, T, past = 0) {
    const { kernels, C, attention, mlp } = this;
    const { ln_1, ln_2 } = this.blocks[l];
    const N = B * T;
    this.norm(x, N, ln_1, kept.n1, kept.stats1);
    this.attend(l, kept, B, T, past); // from n1 to y
    this.linearForward(l, attention, kept.y, N, kept.x2, kept.xA[attention]);
    kernels.add(x, kept.x2, N * C);

    this.norm(kept.x2, N, ln_2, kept.n2, kept.stats2);
    this.widen(l, kept, N); // from n2 to f
    this.linearForward(l, mlp, kept.f, N, out, kept.xA[mlp]);
    kernels.add(kept.x2, out, N * C);
  }

  // g (N, C), the gradient at the block's output, becomes the gradient at its input x.
  blockBackward(l, x, kept, g, B, T) {
    const { attention, mlp } = this;
    const { ln_1, ln_2 } = this.blocks[l];
    const { dn, df } = this.room; // room for gradients on the way
    const N = B * T;
    this.linearBackward(l, mlp, kept.f, kept.xA[mlp], g, N, df);
    this.widenBackward(l, kept, N); // from df to dn
    this.normBackward(kept.x2, N, ln_2, kept.stats2, dn, g); // adds to the residual stream's gradient

    this.linearBackward(l, attention, kept.y, kept.xA[attention], g, N, dn);
    const first = l === 0; // below the first block nothing is trained
    this.attendBackward(l, kept, B, T, !first); // from dn to dn
    if (!first) this.normBackward(x, N, ln_1, kept.stats1, dn, g);
  }

  // x (T, C) = each token's embedding, in a GPT-2 + that of its position.
  embed(ids, past, x) {
    const { kernels, memory, room, wte, wpe, C } = this;
    memory.ints(room.ids, ids.length).set(ids);
    kernels.embed(room.ids, ids.length, C, wte.panels, wte.packed, wpe && wpe + 4 * past * C, x);
  }

  // logits (N, L) of x (N, C), the stream after the last block.
  headForward(x, N, logits) {
    const { kernels, room, ln_f, wte, C, L } = this;
    this.norm(x, N, ln_f, room.nf, room.statsf);
    kernels.matmul(room.nf, N, C, wte.panels, wte.packed, L, 0, logits); // the head is the embedding, transposed
  }

  // g (N, C) becomes the gradient at x, for the gradient at the logits.
  headBackward(x, N, logits, g) {
    const { kernels, room, ln_f, wte, C, L } = this;
    kernels.matmul_transposed(logits, N, L, wte.panels, wte.packed, C, room.dn);
    kernels.zero(g, N * C);
    this.normBackward(x, N, ln_f, room.statsf, room.dn, g);
  }

  // ---- Writing -------------------------------------------------------------------------------------------------

  // Begin a new text.
  restart() {
    this.read = 0; // tokens in the caches
  }

  // Read `ids`, which go on after the tokens read before; returns the logits (V) after the last of them.
  async next(ids) {
    if (this.read + ids.length > this.context) {
      throw new LabError(`The model reads at most ${this.context} tokens.`);
    }
    this.roomFor("writing", PIECE, this.context);
    this.cacheFor(this.read + ids.length);
    for (let at = 0; at < ids.length; at += PIECE) this.readPiece(ids.slice(at, at + PIECE));
    const { x, logits } = this.room;
    const last = x[0] + 4 * ((ids.length - 1) % PIECE) * this.C;
    this.headForward(last, 1, logits);
    return this.memory.floats(logits, this.V);
  }

  readPiece(ids) {
    const { x, kept } = this.room;
    this.embed(ids, this.read, x[0]);
    for (let l = 0; l < this.depth; l++) {
      this.blockForward(l, x[0], x[0], { ...kept[0], ...this.caches[l] }, 1, ids.length, this.read);
    }
    this.read += ids.length;
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
    const { kernels, memory, C, V, depth } = this;
    const [B, T] = [rows.length, rows[0].length];
    const N = B * T;
    const room = this.roomFor("training", N, T);
    const { x, kept, logits, g } = room;
    for (let b = 0; b < B; b++) this.embed(rows[b], 0, x[0] + 4 * b * T * C);
    for (let l = 0; l < depth; l++) this.blockForward(l, x[l], x[l + 1], kept[l], B, T);
    this.headForward(x[depth], N, logits);

    memory.ints(room.targets, N).set(targets.flat());
    kernels.cross_entropy(logits, room.targets, N, V, 1 / wanted, room.losses); // logits become their gradient
    const parts = memory.floats(room.losses, 2 * N);
    let total = 0;
    for (let n = 0; n < N; n++) total += Math.log(parts[2 * n]) + parts[2 * n + 1];
    if (!gradients) return total / wanted;

    this.headBackward(x[depth], N, logits, g);
    for (let l = depth - 1; l >= 0; l--) this.blockBackward(l, x[l], kept[l], g, B, T);
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

  // The base's fingerprint, out of the weights of these layers: see `samplePlaces`.
  async baseSample(names) {
    return samplePlaces(this.config, names).map(([name, at]) => {
      const [, l, kind] = name.match(/^\w+\.(\d+)\.(.*)$/);
      const { k } = this.blocks[l][kind];
      return weightAt(this.memory, this.blocks[l][kind], Math.floor(at / k), at % k);
    });
  }

  // Room for what a pass over N tokens computes, in sequences of up to T. It is kept until a larger one is needed.
  roomFor(purpose, N, T) {
    const old = this.rooms[purpose];
    if (!(old && old.N >= N && old.T >= T && old.rank >= this.rank)) {
      for (const begin of old?.pieces ?? []) this.memory.free(begin);
      this.rooms[purpose] = null; // if there is no room for the new one
      this.rooms[purpose] = this.memory.allOrNone(() => this.newRoom(N, T, purpose === "training"));
    }
    this.room = this.rooms[purpose];
    return this.room;
  }

  // Training keeps what each block computed, for the backward pass. Writing uses one block's room again and again.
  newRoom(N, T, training) {
    const { C, H, D, L, depth, inner, rank, memory, kinds, cacheWidths } = this;
    const pieces = [];
    const floats = count => {
      pieces.push(memory.alloc(count));
      return pieces.at(-1);
    };
    const times = (count, make) => Array.from({ length: count }, make);
    const each = (widths, make) =>
      Object.fromEntries(Object.entries(widths).map(([part, width]) => [part, make(N * width)]));
    const blockRoom = () => ({
      ...each({ n1: C, stats1: 2, y: H * D, x2: C, n2: C, stats2: 2, f: inner, ...this.widths }, floats),
      ...each(training ? cacheWidths : {}, floats), // in writing, the caches hold it
      p: floats(N * H * padded(T)),
      xA: Object.fromEntries(kinds.map(kind => [kind, floats(N * rank)])),
    });
    const room = { N, T, rank, pieces, kept: times(training ? depth : 1, blockRoom) };
    room.x = times(training ? depth + 1 : 1, () => floats(N * C)); // the stream between the blocks
    Object.assign(room, { nf: floats(N * C), statsf: floats(2 * N), logits: floats(training ? N * L : L) });
    room.ids = floats(N);
    if (!training) return room;
    Object.assign(room, { targets: floats(N), losses: floats(2 * N), h: floats(N * rank) });
    Object.assign(room, each({ g: C, dn: Math.max(C, H * D), df: inner, ...this.gradientWidths }, floats));
    room.dp = floats(QUERIES * padded(T));
    return room;
  }
}

export function padded(count) {
  return Math.ceil(count / 4) * 4;
}
