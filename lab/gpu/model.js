// A transformer on the GPU, see model/transformer.js: its operations as launches of kernels, and how it writes and learns.
// It has the methods of cpu/model.js.
//
// A tensor is a piece of a GPU's buffer here, see gpu.js; the arithmetic is that of kernels.js. An operation only launches:
// a pass is recorded once, as a plan, and then run again and again. `text` has {B, T, N, cached}: B sequences of T tokens
// each. The logits of all are computed, so that one plan serves all targets.
import { LabError } from "../errors.js";
import { numbersOf } from "../files/safetensors.js";
import { familyOn } from "../model/families.js";
import { wantedIn } from "../model/targets.js";
import { Transformer, whole } from "../model/transformer.js";
import { GPUAdapter } from "./adapter.js";
import { GPU } from "./gpu.js";
import { LANES } from "./kernels.js";
import { Loader } from "./weights.js";

const PIECE = 64; // tokens of a prompt that are read at once

export class GPUModel extends Transformer {
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

  static on(gpu, { config, tensors }, news) {
    return gpu.guarded(async () => {
      const model = new (familyOn(GPUModel, config))(config, gpu, tensors);
      const loader = new Loader(gpu, tensors, news);
      await model.loadFrom(loader);
      model.rounded = loader.rounded;
      model.makeCaches();
      return model;
    });
  }

  constructor(config, gpu, tensors) {
    super(config);
    Object.assign(this, { gpu, tensors, plans: {}, L: config.V });
    const widest = Math.max(this.C, ...Object.values(this.shapes).map(({ d }) => d));
    this.zeros = gpu.alloc(this.padded(widest)); // the bias of a product that has none
    this.numbers = gpu.alloc(4); // the loss, and the square of the gradient's norm
    this.squares = gpu.alloc(LANES); // the parts of that square
    this.use(null);
  }

  makeCaches() {
    const cache = width => this.gpu.alloc(this.context * this.padded(width));
    const widths = Object.entries(this.cacheWidths);
    this.caches = this.blocks.map(() => Object.fromEntries(widths.map(([part, w]) => [part, cache(w)])));
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

  // ---- Operations ------------------------------------------------------------------------------------------------

  matmul(x, N, { W, transposed, bias = this.zeros, d, k }, y) {
    this.product(transposed, { x, W, bias, y, N, from4: fours(d), to4: fours(k) });
  }

  matmulBackward(g, N, { W, transposed, d, k }, dx) {
    this.product(!transposed, { x: g, W, bias: this.zeros, y: dx, N, from4: fours(k), to4: fours(d) });
  }

  // x·W, or, if `backward`, x·Wᵀ, for W as it lies in the file.
  product(backward, args) {
    const kernel = backward ? "matmulBackward" : "matmul";
    this.gpu.launch(args.N === 1 ? `${kernel}OfOne` : kernel, args);
  }

  project(x, N, m, M, r, s, c) {
    this.gpu.launch("project", { x, M, c, N, m4: fours(m), r, s });
  }

  expand(c, N, r, M, m, y) {
    this.gpu.launch("expand", { c, M, y, N, m4: fours(m), r });
  }

  outer(c, N, r, g, m, G) {
    this.gpu.launch("outer", { c, g, G, N, m4: fours(m), r });
  }

  layerNorm(x, N, weight, bias, y, kept, first) {
    this.gpu.launch("norm", { x, w: weight, b: bias, y, kept, N, first, ...this.row });
  }

  layerNormBackward(x, N, weight, kept, g, dx) {
    this.gpu.launch("normBackward", { x, w: weight, kept, g, dx, N, ...this.row });
  }

  rmsNorm(x, N, weight, y, kept, first) {
    this.gpu.launch("rmsNorm", { x, w: weight, y, kept, N, first, ...this.row });
  }

  rmsNormBackward(x, N, weight, kept, g, dx) {
    this.gpu.launch("rmsNormBackward", { x, w: weight, kept, g, dx, N, ...this.row });
  }

  // Of the residual stream.
  get row() {
    const { C, epsilon } = this;
    return { C, stride: this.padded(C), eps: epsilon };
  }

  // y (N, H·D) from queries, keys and values; p takes each token's shares of all before it.
  attention([q, k, v], p, y, text) {
    const { gpu, H, D } = this;
    this.scores(q, k, p, text, 1 / Math.sqrt(D));
    gpu.launch("softmax", { p, ...this.sizes(text) });
    this.gather(p, v, whole(y, H * D), text);
  }

  // For the gradient g (N, H·D) at y. dp_tj = g_t·v_j has the form of a score, and dq_t = Σ_j dp_tj·k_j that of y.
  attentionBackward([q, k, v], p, g, [dq, dk, dv], text) {
    const { gpu, H, D, room } = this;
    const { dp } = room;
    const dy = whole(g, H * D);
    this.scores(dy, v, dp, text, 1);
    gpu.launch("softmaxBackward", { p, dp, ...this.sizes(text), scale: 1 / Math.sqrt(D) });
    this.gather(dp, k, dq, text);
    this.collect(dp, q, dk, text);
    this.collect(p, dy, dv, text);
  }

  // L: the places that a sequence has among keys and values.
  sizes({ B, T, cached }) {
    const { H, K, D, context } = this;
    return { B, T, L: cached ? context : T, H, K, D };
  }

  // Where a part of a tensor lies, see `whole`, as constants of a kernel that calls it by this name.
  where(name, { width, first }) {
    return { [`stride${name}`]: this.padded(width), [`at${name}`]: first };
  }

  scores(q, k, p, text, scale) {
    const places = { ...this.where("Q", q), ...this.where("K", k) };
    this.gpu.launch("scores", { q: q.x, k: k.x, p, ...this.sizes(text), ...places, scale });
  }

  gather(p, v, y, text) {
    const places = { ...this.where("V", v), ...this.where("Y", y) };
    this.gpu.launch("gather", { p, v: v.x, y: y.x, ...this.sizes(text), ...places });
  }

  collect(p, x, y, text) {
    const places = { ...this.where("X", x), ...this.where("Y", y) };
    this.gpu.launch("collect", { p, x: x.x, y: y.x, ...this.sizes(text), ...places });
  }

  rope(x, heads, { N, T }, sign = 1) {
    const { gpu, angles, D } = this;
    gpu.launch("rope", { angles, x, N, T, heads, D, stride: this.padded(heads * D), sign });
  }

  ropeBackward(g, heads, text) {
    this.rope(g, heads, text, -1);
  }

  gelu(u, f, N, width) {
    this.gpu.launch("gelu", { x: u, y: f, m4: N * fours(width) });
  }

  geluBackward(u, g, N, width) {
    this.gpu.launch("geluBackward", { x: u, g, m4: N * fours(width) });
  }

  swiglu(gate, up, f, N, width) {
    this.gpu.launch("swiglu", { a: gate, b: up, f, m4: N * fours(width) });
  }

  swigluBackward(g, gate, up, N, width) {
    this.gpu.launch("swigluBackward", { g, a: gate, b: up, m4: N * fours(width) });
  }

  add(x, y, N, width) {
    this.gpu.launch("add", { x, y, m4: N * fours(width) });
  }

  zero(x, N, width) {
    this.gpu.launch("zero", { x, m4: N * fours(width) });
  }

  // x (N, C) = the embedding of each of the room's ids, in a GPT-2 + that of its position.
  embed(x, { N, T }) {
    const { gpu, room, wte, wpe, C } = this;
    gpu.launch("embed", { ids: room.ids, wte: wte.W, x, N, d4: fours(C) });
    if (wpe) gpu.launch("addPlaces", { wpe, x, N, T, d4: fours(C) });
  }

  append(x, cache, width, { N }) {
    this.gpu.launch("append", { x, cache, N, m4: fours(width) });
  }

  alloc(count) {
    return this.gpu.alloc(count);
  }

  padded(width) {
    return 4 * fours(width);
  }

  // The file's own number.
  async weightAt({ name, transposed }, row, column) {
    const { dtype, read } = this.tensors[name];
    const [line, place] = transposed ? [column, row] : [row, column];
    return numbersOf(dtype, await read(line, 1))[place];
  }

  // ---- Writing ---------------------------------------------------------------------------------------------------

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
    const room = await this.roomFor("writing", { N: PIECE, M: 1, p: this.H * PIECE * context, dp: 0 });
    const plan = await this.planFor(`next ${T}`, room, () => this.describeNext(T));
    gpu.write(room.ids, Int32Array.from(ids));
    gpu.setNow({ past: this.read });
    this.read += T;
    const [logits] = await gpu.run(plan, [room.logits]);
    return logits.subarray(0, this.V);
  }

  describeNext(T) {
    this.forward({ B: 1, T, N: T, cached: true });
    this.headForward(1, T - 1);
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
    const N = B * T;
    const p = this.H * N * T;
    const room = await this.roomFor("training", { N, M: N, p, dp: p });
    const plan = await this.planFor(`${loaded ? "step" : "loss"} ${B} ${T}`, room, () => {
      const text = { B, T, N, cached: false };
      this.describeLoss(text);
      if (loaded) this.describeStep(text, loaded);
    });
    const wanted = wantedIn(targets);
    gpu.write(room.ids, Int32Array.from(rows.flat()));
    gpu.write(room.targets, Int32Array.from(targets.flat()));
    gpu.setNow({ ...now, weight: wanted ? 1 / wanted : 0 });
    const [[loss]] = await gpu.run(plan, [this.numbers]);
    return loss;
  }

  describeLoss(text) {
    const { gpu, V, numbers } = this;
    const { targets, logits, losses } = this.room;
    const { N } = text;
    this.forward(text);
    this.headForward(N);
    gpu.launch("crossEntropy", { targets, logits, losses, N, V, stride: this.padded(V) });
    gpu.launch("total", { x: losses, out: numbers, m: N, slot: 0 });
  }

  describeStep(text, loaded) {
    const { gpu, numbers, squares } = this;
    this.headBackward(text.N);
    this.backward(text);
    const m4 = loaded.size / 4;
    gpu.launch("squares", { x: loaded.g, out: squares, m4 });
    gpu.launch("total", { x: squares, out: numbers, m: LANES, slot: 1 });
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

  // The plan of this name, in which `describe` reads and writes this room.
  async planFor(name, room, describe) {
    this.room = room;
    this.plans[name] ??= await this.gpu.record(describe);
    return this.plans[name];
  }

  forgetPlans() {
    for (const { constants } of Object.values(this.plans)) this.gpu.free(constants);
    this.plans = {};
  }

  // Room for what a pass computes, see `larger`. It is kept until a larger room is needed.
  async roomFor(purpose, sizes) {
    const larger = this.larger(purpose, { ...sizes, rank: this.rank });
    if (!larger) return this.rooms[purpose];
    const old = this.rooms[purpose];
    this.forgetPlans(); // they contain the old room
    for (const piece of old?.pieces ?? []) this.gpu.free(piece);
    delete this.rooms[purpose];
    this.rooms[purpose] = await this.gpu.guarded(() => this.newRoom(larger, purpose === "training"));
    return this.rooms[purpose];
  }
}

// How many groups of four hold `count` numbers.
function fours(count) {
  return Math.ceil(count / 4);
}
