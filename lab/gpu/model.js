// GPT-2 with LoRA in it, on the GPU: W' = W + s·A·B. It has the methods of cpu/model.js, and the letters are the same.
//
// Each layer's backward pass stands below its forward pass. A tensor is a piece of a GPU's buffer here, see gpu.js;
// the arithmetic is that of kernels.js.
import { LabError } from "../errors.js";
import { numbersOf } from "../files/safetensors.js";
import { KINDS, kindOf, layerShapes, samplePlaces } from "../model/layers.js";
import { wantedIn } from "../model/targets.js";
import { GPUAdapter } from "./adapter.js";
import { GPU } from "./gpu.js";
import { LANES } from "./kernels.js";
import { Packer } from "./weights.js";

const PIECE = 64; // tokens of a prompt that are read at once
const UPLOAD = 2 ** 22; // numbers of a weight that are uploaded at once

export class GPUModel {
  // `source`: see files/model_files.js. `exact`: keep float32 weights as they are, not as float16. `found`: see `findGPU`.
  // `news` hears the share that is uploaded. Throws LabError, which says what the GPU lacks.
  static async load(source, { exact, found }, news = () => {}) {
    const onlyHalf = Object.values(source.tensors).every(({ dtype }) => dtype === "F16");
    const gpu = await GPU.open(found, onlyHalf || !exact);
    try {
      return await GPUModel.on(gpu, source, news);
    } catch (error) {
      gpu.close();
      throw error;
    }
  }

  static on(gpu, source, news) {
    return gpu.guarded(async () => {
      const model = new GPUModel(gpu, source);
      await model.upload(news);
      return model;
    });
  }

  constructor(gpu, { config, tensors }) {
    Object.assign(this, config, { gpu, config, tensors, rooms: {}, plans: {}, waiting: [] });
    const { C, V, H, depth, inner } = this;
    Object.assign(this, { D: C / H, C4: fours(C), qkv4: fours(3 * C), f4: fours(inner), V4: fours(V) });
    const weight = name => this.allocFor(`${name}.weight`, gpu.half);
    const vector = name => this.allocFor(name, false);
    const norm = name => ({ weight: vector(`${name}.weight`), bias: vector(`${name}.bias`) });
    this.wte = weight("wte"); // (V, C), also the head
    this.wpe = weight("wpe"); // (context, C)
    this.blocks = Array.from({ length: depth }, (_, l) => ({
      ln_1: norm(`h.${l}.ln_1`),
      ln_2: norm(`h.${l}.ln_2`),
    }));
    for (const [name, { d, k }] of Object.entries(layerShapes(config))) {
      const layer = { d4: fours(d), k4: fours(k), W: weight(name), bias: vector(`${name}.bias`) };
      this.blocks[name.split(".")[1]][kindOf(name)] = layer;
    }
    this.ln_f = norm("ln_f");
    this.caches = this.blocks.map(() => gpu.alloc(this.context * 4 * this.qkv4)); // query, key, value of each token
    this.zeros = gpu.alloc(4 * this.C4); // the bias of a product that has none
    this.numbers = gpu.alloc(4); // the loss, and the square of the gradient's norm
    this.restart();
    this.use(null);
  }

  get megabytes() {
    return this.gpu.bytes / 1e6;
  }

  get stored() {
    return this.gpu.half ? "float16" : "float32";
  }

  // Why the GPU can no longer be used, or null.
  get lost() {
    return this.gpu.failed;
  }

  free() {
    this.gpu.close();
  }

  // Room for a tensor of the file, all rows and columns padded to fours.
  allocFor(name, half) {
    const [columns, rows = 1] = this.tensors[name].shape.toReversed();
    const count = (rows === 1 ? 1 : 4 * fours(rows)) * 4 * fours(columns);
    const tensor = this.gpu.alloc(half ? count / 2 : count);
    this.waiting.push({ name, tensor, half });
    return tensor;
  }

  async upload(news) {
    const packer = new Packer();
    for (const [index, { name, tensor, half }] of this.waiting.entries()) {
      const { dtype, shape, read } = this.tensors[name];
      const columns = shape.at(-1);
      const [rows, atOnce] =
        shape.length === 1 ? [columns, columns] : [shape[0], Math.ceil(UPLOAD / columns)];
      for (let row = 0; row < rows; row += atOnce) {
        const bytes = await read(row, Math.min(atOnce, rows - row));
        const place = (half ? 2 : 4) * row * 4 * fours(columns);
        this.gpu.write(tensor, packer.packed(name, dtype, bytes, columns, half), place);
      }
      news((index + 1) / this.waiting.length);
    }
    this.waiting = [];
    this.rounded = packer.rounded;
  }

  // ---- A linear layer with LoRA beside it ------------------------------------------------------------------------

  // y = x·W + bias, for x (N, d) and y (N, k).
  matmul(x, { W, bias, d4, k4 }, y, N) {
    this.gpu.launch(N === 1 ? "matmulOfOne" : "matmul", { x, W, bias, y, N, from4: d4, to4: k4 });
  }

  // dx = g·Wᵀ, for g (N, k) and dx (N, d).
  matmulBackward(g, { W, d4, k4 }, dx, N) {
    const kernel = N === 1 ? "matmulBackwardOfOne" : "matmulBackward";
    this.gpu.launch(kernel, { x: g, W, y: dx, N, from4: k4, to4: d4 });
  }

  // y = x·W + bias + s·(x·A)·B.  x (N, d), y (N, k); xA (N, r) is kept for the backward pass.
  linearForward(l, kind, x, N, y, xA) {
    const { gpu, blocks, bypasses } = this;
    const layer = blocks[l][kind];
    this.matmul(x, layer, y, N);
    const lora = bypasses[`h.${l}.${kind}`];
    if (!lora) return;
    const { A, B, r, s } = lora;
    gpu.launch("project", { x, M: A, c: xA, N, m4: layer.d4, r, s: 1 }); // x·A
    gpu.launch("expand", { c: xA, M: B, y, N, m4: layer.k4, r, s }); //      y += s·(x·A)·B
  }

  // g (N, k) is the gradient at y. dx (N, d) becomes the gradient at x; it is null if it is not needed.
  linearBackward(l, kind, x, xA, g, N, dx) {
    const layer = this.blocks[l][kind];
    if (dx) this.matmulBackward(g, layer, dx, N);
    const lora = this.bypasses[`h.${l}.${kind}`];
    if (lora) this.loraBackward(lora, layer, x, xA, g, N, dx);
  }

  // LoRA's backward pass. A is stored transposed, (r, d), as in an adapter's file, and so is its gradient.
  loraBackward({ A, B, dA, dB, r, s }, { d4, k4 }, x, xA, g, N, dx) {
    const { gpu } = this;
    const { h } = this.rooms.training;
    gpu.launch("project", { x: g, M: B, c: h, N, m4: k4, r, s }); //           h = s·g·Bᵀ          (N, r)
    gpu.launch("outer", { c: h, g: x, G: dA, N, m4: d4, r, s: 1 }); //         dA = xᵀ·h           (d, r)
    gpu.launch("outer", { c: xA, g, G: dB, N, m4: k4, r, s }); //              dB = s·(x·A)ᵀ·g     (r, k)
    if (dx) gpu.launch("expand", { c: h, M: A, y: dx, N, m4: d4, r, s: 1 }); // dx += h·Aᵀ         (N, d)
  }

  // ---- LayerNorm and attention -----------------------------------------------------------------------------------

  norm(x, { weight, bias }, y, kept, N, first = 0) {
    const { gpu, C, C4, epsilon } = this;
    gpu.launch("norm", { x, w: weight, b: bias, y, kept, N, C, stride: 4 * C4, first, eps: epsilon });
  }

  normBackward(x, { weight }, kept, g, dx, N) {
    const { gpu, C, C4 } = this;
    gpu.launch("normBackward", { x, w: weight, kept, g, dx, N, C, stride: 4 * C4 });
  }

  // `cache` holds all tokens of a sequence, L places. In training it is qkv itself, and L = T.
  attention(qkv, cache, L, p, y, B, T) {
    const { gpu, H, D, qkv4, C4 } = this;
    const stride = 4 * qkv4;
    gpu.launch("scores", { qkv, cache, p, B, T, L, H, D, stride, scale: 1 / Math.sqrt(D) });
    gpu.launch("softmax", { p, B, T, L, H });
    gpu.launch("gather", { cache, p, y, B, T, L, H, D, stride, strideY: 4 * C4 });
  }

  attentionBackward(qkv, p, g, dqkv, dp, B, T) {
    const { gpu, H, D, qkv4, C4 } = this;
    const shape = { B, T, H, D, stride: 4 * qkv4, strideY: 4 * C4 };
    gpu.launch("gatherBackward", { g, qkv, dp, ...shape });
    gpu.launch("softmaxBackward", { p, dp, B, T, H, scale: 1 / Math.sqrt(D) });
    gpu.launch("scoresBackward", { qkv, p, dp, g, dqkv, ...shape });
  }

  // ---- A block: attention, then MLP, each added to the residual stream -------------------------------------------

  // x (N, C) to out (N, C). `kept` takes what the backward pass needs; in writing there is a `cache`.
  blockForward(l, x, out, kept, B, T, cache = null) {
    const { gpu, C4, f4, qkv4, context } = this;
    const { ln_1, ln_2 } = this.blocks[l];
    const N = B * T;
    this.norm(x, ln_1, kept.n1, kept.stats1, N);
    this.linearForward(l, "attn.c_attn", kept.n1, N, kept.qkv, kept.xA["attn.c_attn"]);
    if (cache) gpu.launch("remember", { qkv: kept.qkv, cache, N, m4: qkv4 });
    this.attention(kept.qkv, cache ?? kept.qkv, cache ? context : T, kept.p, kept.y, B, T);
    this.linearForward(l, "attn.c_proj", kept.y, N, kept.x2, kept.xA["attn.c_proj"]);
    gpu.launch("add", { x, y: kept.x2, m4: N * C4 });

    this.norm(kept.x2, ln_2, kept.n2, kept.stats2, N);
    this.linearForward(l, "mlp.c_fc", kept.n2, N, kept.u, kept.xA["mlp.c_fc"]);
    gpu.launch("gelu", { x: kept.u, y: kept.f, m4: N * f4 });
    this.linearForward(l, "mlp.c_proj", kept.f, N, out, kept.xA["mlp.c_proj"]);
    gpu.launch("add", { x: kept.x2, y: out, m4: N * C4 });
  }

  // g (N, C), the gradient at the block's output, becomes the gradient at its input x. `lowest`: no block below has
  // LoRA in it, so the gradient at x is not needed.
  blockBackward(l, x, kept, g, B, T, lowest) {
    const { gpu, f4 } = this;
    const { ln_1, ln_2 } = this.blocks[l];
    const { dn, df, dqkv, dp } = this.rooms.training;
    const N = B * T;
    this.linearBackward(l, "mlp.c_proj", kept.f, kept.xA["mlp.c_proj"], g, N, df);
    gpu.launch("geluBackward", { x: kept.u, g: df, m4: N * f4 });
    this.linearBackward(l, "mlp.c_fc", kept.n2, kept.xA["mlp.c_fc"], df, N, dn);
    this.normBackward(kept.x2, ln_2, kept.stats2, dn, g, N); // adds to the residual stream's gradient

    this.linearBackward(l, "attn.c_proj", kept.y, kept.xA["attn.c_proj"], g, N, dn);
    this.attentionBackward(kept.qkv, kept.p, dn, dqkv, dp, B, T);
    this.linearBackward(l, "attn.c_attn", kept.n1, kept.xA["attn.c_attn"], dqkv, N, lowest ? null : dn);
    if (!lowest) this.normBackward(x, ln_1, kept.stats1, dn, g, N);
  }

  // The head is the embedding (V, C), transposed: logits = x·wteᵀ is a backward product, and g·wte a forward one.
  get head() {
    return { W: this.wte, bias: this.zeros, d4: this.V4, k4: this.C4 };
  }

  // ---- Writing ---------------------------------------------------------------------------------------------------

  // Begin a new text.
  restart() {
    this.read = 0; // tokens in the caches
  }

  // Read `ids`, which go on after the tokens read before; returns the logits (V) after the last of them. They are read
  // in pieces of 64, 32, 16, … tokens, so that a few plans are enough for texts of any length.
  async next(ids) {
    if (this.read + ids.length > this.context) {
      throw new LabError(`The model reads at most ${this.context} tokens.`);
    }
    let logits;
    for (let at = 0; at < ids.length; ) {
      const T = Math.min(PIECE, 2 ** Math.floor(Math.log2(ids.length - at)));
      logits = await this.nextPiece(ids.slice(at, at + T));
      at += T;
    }
    return logits;
  }

  async nextPiece(ids) {
    const { gpu, context } = this;
    const T = ids.length;
    const room = await this.roomFor("writing", { N: PIECE, scores: PIECE * context });
    const plan = await this.planFor(`next ${T}`, () => this.describeNext(room, T));
    gpu.write(room.ids, Int32Array.from(ids));
    gpu.setNow({ past: this.read });
    this.read += T;
    const [logits] = await gpu.run(plan, [room.logits]);
    return logits.subarray(0, this.V);
  }

  describeNext({ ids, x, kept, nf, statsf, logits }, T) {
    this.embed(ids, x[0], T, T);
    for (let l = 0; l < this.depth; l++) this.blockForward(l, x[0], x[0], kept[0], 1, T, this.caches[l]);
    this.norm(x[0], this.ln_f, nf, statsf, 1, T - 1);
    this.matmulBackward(nf, this.head, logits, 1);
  }

  embed(ids, x, N, T) {
    this.gpu.launch("embed", { ids, wte: this.wte, wpe: this.wpe, x, N, T, d4: this.C4 });
  }

  // ---- Learning --------------------------------------------------------------------------------------------------

  // One step of AdamW for the adapter in use, which was placed to learn. `step` counts from 1. Returns the loss before
  // it. If that is not finite, or above `most`, nothing is learned: the weights of the last good loss come back.
  async step(loaded, rows, targets, { step, rate, most }) {
    const fixes = { fixM: 1 - 0.9 ** step, fixV: Math.sqrt(1 - 0.999 ** step) };
    const now = { rate, ...fixes, most: Math.min(most, 3e38) };
    const loss = await this.pass(rows, targets, loaded, now);
    if (!(loss <= most)) loaded.goBack();
    return loss;
  }

  // The mean loss over all targets that count, in nats a token. rows and targets: B lists of T token ids each; a target of
  // -100 does not count.
  loss(rows, targets) {
    return this.pass(rows, targets, null, {});
  }

  // One submission for all of a step, if the GPU is fast enough, and 16 bytes come back.
  async pass(rows, targets, loaded, now) {
    const { gpu } = this;
    const [B, T] = [rows.length, rows[0].length];
    if (T > this.context) throw new LabError(`The model reads at most ${this.context} tokens.`);
    const room = await this.roomFor("training", { N: B * T, scores: B * T * T });
    const plan = await this.planFor(`${loaded ? "step" : "loss"} ${B} ${T}`, () => {
      this.describeLoss(room, B, T);
      if (loaded) this.describeStep(room, B, T, loaded);
    });
    const wanted = wantedIn(targets);
    gpu.write(room.ids, Int32Array.from(rows.flat()));
    gpu.write(room.targets, Int32Array.from(targets.flat()));
    gpu.setNow({ ...now, weight: wanted ? 1 / wanted : 0 });
    const [[loss]] = await gpu.run(plan, [this.numbers]);
    return loss;
  }

  describeLoss({ ids, targets, x, kept, nf, statsf, logits, losses }, B, T) {
    const { gpu, V, V4, depth, numbers } = this;
    const N = B * T;
    this.embed(ids, x[0], N, T);
    for (let l = 0; l < depth; l++) this.blockForward(l, x[l], x[l + 1], kept[l], B, T);
    this.norm(x[depth], this.ln_f, nf, statsf, N);
    this.matmulBackward(nf, this.head, logits, N);
    gpu.launch("crossEntropy", { targets, logits, losses, N, V, stride: 4 * V4 });
    gpu.launch("total", { x: losses, out: numbers, m: N, slot: 0 });
  }

  describeStep({ x, kept, statsf, logits, g, dn, parts }, B, T, loaded) {
    const { gpu, C4, depth, numbers } = this;
    const N = B * T;
    this.matmul(logits, this.head, dn, N);
    gpu.launch("zero", { x: g, m4: N * C4 });
    this.normBackward(x[depth], this.ln_f, statsf, dn, g, N);
    const lowest = Math.min(...Object.keys(this.bypasses).map(layer => Number(layer.split(".")[1])));
    for (let l = depth - 1; l >= lowest; l--) this.blockBackward(l, x[l], kept[l], g, B, T, l === lowest);

    const m4 = loaded.size / 4;
    gpu.launch("squares", { x: loaded.g, out: parts, m4 });
    gpu.launch("total", { x: parts, out: numbers, m: LANES, slot: 1 });
    const { w, m, v, good } = loaded;
    gpu.launch("adamw", { g: loaded.g, numbers, w, m, v, good, m4 });
  }

  // ---- Adapters, plans and room ----------------------------------------------------------------------------------

  // Copy an adapter into the GPU's memory; `learning` if it will be trained.
  place(adapter, learning = false) {
    return this.gpu.guarded(() => new GPUAdapter(this.gpu, adapter, learning));
  }

  // Use a placed adapter as the sliders are set, `view`: {rank, strength, off}. null is the base alone.
  use(loaded, view) {
    const key = JSON.stringify(view ?? {});
    if (this.used && this.used.loaded === loaded && this.used.key === key) return;
    this.used = { loaded, key };
    this.bypasses = loaded?.bypasses(view) ?? {};
    this.rank = Math.max(1, ...Object.values(this.bypasses).map(bypass => bypass.r));
    this.forgetPlans(); // they contain the previous adapter
  }

  // The base's fingerprint, out of the weights of these layers: see `samplePlaces`.
  async baseSample(names) {
    const number = async ([name, at]) => {
      const { dtype, shape, read } = this.tensors[`${name}.weight`];
      return numbersOf(dtype, await read(Math.floor(at / shape[1]), 1))[at % shape[1]];
    };
    return Promise.all(samplePlaces(this.config, names).map(number));
  }

  async planFor(name, describe) {
    this.plans[name] ??= await this.gpu.record(describe);
    return this.plans[name];
  }

  forgetPlans() {
    for (const { constants } of Object.values(this.plans)) this.gpu.free(constants);
    this.plans = {};
  }

  // Room for what a pass over N tokens computes, with this number of scores in each head. It is kept until a larger
  // room is needed.
  async roomFor(purpose, sizes) {
    const old = this.rooms[purpose];
    const wanted = { ...sizes, rank: this.rank };
    if (old && Object.entries(wanted).every(([what, size]) => old.sizes[what] >= size)) return old;
    for (const what of Object.keys(wanted)) wanted[what] = Math.max(wanted[what], old?.sizes[what] ?? 0);
    this.forgetPlans(); // they contain the old room
    for (const piece of old?.pieces ?? []) this.gpu.free(piece);
    delete this.rooms[purpose];
    this.rooms[purpose] = await this.gpu.guarded(() => this.newRoom(wanted, purpose === "training"));
    return this.rooms[purpose];
  }

  // Training keeps what each block computed, for the backward pass. Writing uses one block's room again and again.
  newRoom(sizes, training) {
    const { gpu, C4, f4, qkv4, V4, H, depth } = this;
    const { N, scores, rank } = sizes;
    const pieces = [];
    const floats = count => {
      pieces.push(gpu.alloc(count));
      return pieces.at(-1);
    };
    const rows = width4 => floats(4 * N * width4);
    const times = (count, make) => Array.from({ length: count }, make);
    const blockRoom = () => ({
      n1: rows(C4),
      stats1: floats(2 * N),
      qkv: rows(qkv4),
      p: floats(H * scores),
      y: rows(C4),
      x2: rows(C4),
      n2: rows(C4),
      stats2: floats(2 * N),
      u: rows(f4),
      f: rows(f4),
      xA: Object.fromEntries(KINDS.map(kind => [kind, floats(N * rank)])),
    });
    const room = { sizes, pieces, ids: floats(N), kept: times(training ? depth : 1, blockRoom) };
    room.x = times(training ? depth + 1 : 1, () => rows(C4)); // the residual stream between the blocks
    Object.assign(room, {
      nf: rows(C4),
      statsf: floats(2 * N),
      logits: training ? rows(V4) : floats(4 * V4),
    });
    if (!training) return room;
    Object.assign(room, { targets: floats(N), losses: floats(N), parts: floats(LANES), h: floats(N * rank) });
    return Object.assign(room, {
      g: rows(C4),
      dn: rows(C4),
      df: rows(f4),
      dqkv: rows(qkv4),
      dp: floats(H * scores),
    });
  }
}

// How many groups of four hold `count` numbers.
function fours(count) {
  return Math.ceil(count / 4);
}
