// GPT-2 with LoRA in it, on the processor: W' = W + s·A·B, as in `lora_lib.gpt2` and `lora_lib.lora_linear`.
//
// What the worker needs of a model, whatever computes it: `place`, `use`, `restart`, `next`, `loss`, `step` and
// `baseSample`. The worker awaits all but `use` and `restart`.
//
// Each layer's backward pass stands below its forward pass. Forward: the layer's output from its input. Backward:
// `g`, the loss's gradient at the output, becomes the gradient at the input, and, in a LoRA layer, at A and B.
// Nothing else is trained, so nothing else needs a gradient.
//
// Letters: B sequences of T tokens each, N = B·T tokens in all; C the model's width, V its vocabulary, H heads;
// a layer has d inputs and k outputs; r is the rank. A tensor is a number here: where it lies in WebAssembly's
// memory. Its shape stands in a comment. The arithmetic is that of kernels.c.

import { LabError } from "./errors.js";
import { KINDS, samplePlaces } from "./layers.js";
import { LoadedAdapter } from "./loaded_adapter.js";
import { Memory } from "./memory.js";

export class GPT2 {
  // `wasm`: the bytes of kernels.wasm. `config`: see config.js. `tensors`: raw float16, see `readSafetensors`.
  constructor(wasm, config, tensors) {
    this.config = config;
    Object.assign(this, config);
    this.memory = new Memory();
    const module = new WebAssembly.Module(wasm);
    this.kernels = new WebAssembly.Instance(module, { env: { memory: this.memory.wasm } }).exports;
    this.memory.top = Math.ceil(this.kernels.heap_base() / 64) * 64;
    const { C, V } = this;
    const read = name => this.readHalf(tensors[`transformer.${name}`].data);
    const norm = name => ({ weight: read(`${name}.weight`), bias: read(`${name}.bias`) });
    const linear = (name, d, k) => ({
      ...this.pack(read(`${name}.weight`), d, k),
      bias: read(`${name}.bias`),
    });
    this.wte = read("wte.weight"); // (V, C)
    this.wpe = read("wpe.weight"); // (context, C)
    this.blocks = Array.from({ length: this.depth }, (_, l) => {
      const block = { ln_1: norm(`h.${l}.ln_1`), ln_2: norm(`h.${l}.ln_2`) };
      for (const [kind, { d, k }] of Object.entries(KINDS))
        block[kind] = linear(`h.${l}.${kind}`, d * C, k * C);
      return block;
    });
    this.ln_f = norm("ln_f");
    const head = this.pack(this.wte, V, C, true);
    this.head = { forward: head.backward, backward: head.forward }; // the head is the embedding, transposed
    this.caches = this.blocks.map(() => this.memory.alloc(this.context * 3 * C)); // query, key, value of each token
    this.restart();
    this.rooms = {};
    this.use(null);
  }

  get megabytes() {
    return this.memory.wasm.buffer.byteLength / 1e6;
  }

  readHalf(bytes) {
    const count = bytes.byteLength / 2;
    const half = this.memory.alloc(count);
    const out = this.memory.alloc(count);
    new Uint8Array(this.memory.wasm.buffer, half, bytes.byteLength).set(new Uint8Array(bytes));
    this.kernels.half_to_float(half, out, count);
    this.memory.free(half);
    return out;
  }

  // A weight W (d, k), ready for x·W and for g·Wᵀ.
  pack(W, d, k, keep = false) {
    const forward = this.memory.alloc(d * k);
    const backward = this.memory.alloc(d * k);
    this.kernels.pack(W, forward, d, k);
    this.kernels.pack_transposed(W, backward, d, k);
    if (!keep) this.memory.free(W);
    return { d, k, forward, backward };
  }

  // ---- A linear layer with LoRA beside it ----------------------------------------------------------------------

  // y = x·W + bias + s·(x·A)·B.  x (N, d), y (N, k); xA (N, r) is kept for the way back.
  linearForward(l, kind, x, N, y, xA) {
    const { d, k, forward, bias } = this.blocks[l][kind];
    this.kernels.matmul(x, N, d, forward, k, bias, y);
    const lora = this.bypasses[`h.${l}.${kind}`];
    if (!lora) return;
    this.kernels.project(x, N, d, lora.A, lora.r, 1, xA); // x·A
    this.kernels.expand(xA, N, lora.r, lora.B, k, lora.s, y); // y += s·(x·A)·B
  }

  // g (N, k) is the gradient at y. dx (N, d) becomes the gradient at x, or is 0 where nobody needs it.
  linearBackward(l, kind, x, xA, g, N, dx) {
    const { d, k, backward } = this.blocks[l][kind];
    if (dx) this.kernels.matmul(g, N, k, backward, d, 0, dx); // dx = g·Wᵀ
    const lora = this.bypasses[`h.${l}.${kind}`];
    if (lora) this.loraBackward(lora, d, k, x, xA, g, N, dx);
  }

  // LoRA's own backward pass. A is kept transposed, (r, d), as in an adapter's file, and so is its gradient.
  loraBackward({ A, B, dA, dB, r, s }, d, k, x, xA, g, N, dx) {
    const { h } = this.room;
    this.kernels.project(g, N, k, B, r, s, h); //   h = s·g·Bᵀ          (N, r)
    this.kernels.outer(h, N, r, x, d, 1, dA); //    dA += xᵀ·h          (d, r)
    this.kernels.outer(xA, N, r, g, k, s, dB); //   dB += s·(x·A)ᵀ·g    (r, k)
    if (dx) this.kernels.expand(h, N, r, A, d, 1, dx); // dx += h·Aᵀ    (N, d)
  }

  // ---- A block: attention, then MLP, each added to the stream that flows past it -------------------------------

  // x (N, C) to out (N, C). `kept` takes what the way back needs; `past` tokens of the sequence were read before.
  blockForward(l, x, out, kept, B, T, past = 0) {
    const { kernels, C, H, blocks } = this;
    const { ln_1, ln_2 } = blocks[l];
    const N = B * T;
    kernels.norm(x, N, C, ln_1.weight, ln_1.bias, kept.n1, kept.stats1);
    this.linearForward(l, "attn.c_attn", kept.n1, N, kept.qkv + 4 * past * 3 * C, kept.xA["attn.c_attn"]);
    for (let b = 0; b < B; b++) {
      const at = 4 * b * T * C; // where this sequence's rows begin, in bytes
      kernels.attention(
        kept.qkv + 3 * at,
        T,
        past,
        H,
        C / H,
        kept.p + 4 * b * H * T * padded(T),
        kept.y + at,
      );
    }
    this.linearForward(l, "attn.c_proj", kept.y, N, kept.x2, kept.xA["attn.c_proj"]);
    kernels.add(x, kept.x2, N * C);

    kernels.norm(kept.x2, N, C, ln_2.weight, ln_2.bias, kept.n2, kept.stats2);
    this.linearForward(l, "mlp.c_fc", kept.n2, N, kept.u, kept.xA["mlp.c_fc"]);
    kernels.gelu(kept.u, kept.f, 4 * N * C);
    this.linearForward(l, "mlp.c_proj", kept.f, N, out, kept.xA["mlp.c_proj"]);
    kernels.add(kept.x2, out, N * C);
  }

  // g (N, C), the gradient at the block's output, becomes the gradient at its input x.
  blockBackward(l, x, kept, g, B, T) {
    const { kernels, C, H, blocks } = this;
    const { ln_1, ln_2 } = blocks[l];
    const { dn, df, dqkv, dp } = this.room; // room for gradients on the way
    const N = B * T;
    this.linearBackward(l, "mlp.c_proj", kept.f, kept.xA["mlp.c_proj"], g, N, df);
    kernels.gelu_backward(kept.u, df, 4 * N * C);
    this.linearBackward(l, "mlp.c_fc", kept.n2, kept.xA["mlp.c_fc"], df, N, dn);
    kernels.norm_backward(kept.x2, N, C, ln_2.weight, kept.stats2, dn, g); // adds to what flows past

    this.linearBackward(l, "attn.c_proj", kept.y, kept.xA["attn.c_proj"], g, N, dn);
    kernels.zero(dqkv, 3 * N * C);
    for (let b = 0; b < B; b++) {
      const at = 4 * b * T * C;
      const p = kept.p + 4 * b * H * T * padded(T);
      kernels.attention_backward(kept.qkv + 3 * at, p, dn + at, T, H, C / H, dqkv + 3 * at, dp);
    }
    const first = l === 0; // below the first block nothing is trained
    this.linearBackward(l, "attn.c_attn", kept.n1, kept.xA["attn.c_attn"], dqkv, N, first ? 0 : dn);
    if (!first) kernels.norm_backward(x, N, C, ln_1.weight, kept.stats1, dn, g);
  }

  // x (T, C) = each token's embedding + its place's.
  embed(ids, past, x) {
    const { C } = this;
    const out = this.memory.floats(x, ids.length * C);
    const tokens = this.memory.floats(this.wte, this.V * C);
    const places = this.memory.floats(this.wpe, this.context * C);
    ids.forEach((id, t) => {
      for (let i = 0; i < C; i++) out[t * C + i] = tokens[id * C + i] + places[(past + t) * C + i];
    });
  }

  // ---- Writing -------------------------------------------------------------------------------------------------

  // Begin a new text.
  restart() {
    this.read = 0; // tokens in the caches
  }

  // Read `ids`, which go on after the tokens read before; returns the logits (V) after the last of them.
  async next(ids) {
    const { kernels, C, V, depth, caches, ln_f } = this;
    const T = ids.length;
    if (this.read + T > this.context) throw new LabError(`The model reads at most ${this.context} tokens.`);
    const room = this.roomFor("writing", this.context, this.context);
    const { x, kept, nf, statsf, logits } = room;
    this.embed(ids, this.read, x[0]);
    for (let l = 0; l < depth; l++) {
      this.blockForward(l, x[0], x[0], { ...kept[0], qkv: caches[l] }, 1, T, this.read);
    }
    const last = x[0] + 4 * (T - 1) * C;
    kernels.norm(last, 1, C, ln_f.weight, ln_f.bias, nf, statsf);
    kernels.matmul(nf, 1, C, this.head.forward, V, 0, logits);
    this.read += T;
    return this.memory.floats(logits, V);
  }

  // ---- Learning ------------------------------------------------------------------------------------------------

  // One step of AdamW for the adapter in use, which was placed to learn. `step` counts from 1. Returns the loss before
  // it. Where that is not finite, or above `most`, nothing is learned: the weights of the last sound loss come back.
  async step(loaded, rows, targets, { step, rate, most }) {
    const loss = this.lossAndGradients(rows, targets, true);
    if (loss <= most) {
      loaded.keep();
      loaded.update(step, rate);
    } else loaded.goBack();
    return loss;
  }

  // The mean loss of all wanted targets, in nats a token. rows and targets: B lists of T token ids each; a target of
  // -100 is not wanted.
  async loss(rows, targets) {
    return this.lossAndGradients(rows, targets, false);
  }

  // With `gradients`, those at A and B of the adapter in use are added to its dA and dB.
  lossAndGradients(rows, targets, gradients) {
    const { kernels, memory, C, V, depth, ln_f, head } = this;
    const [B, T] = [rows.length, rows[0].length];
    const N = B * T;
    const room = this.roomFor("training", N, T);
    const { x, kept, nf, statsf, logits, g, dn } = room;
    for (let b = 0; b < B; b++) this.embed(rows[b], 0, x[0] + 4 * b * T * C);
    for (let l = 0; l < depth; l++) this.blockForward(l, x[l], x[l + 1], kept[l], B, T);
    kernels.norm(x[depth], N, C, ln_f.weight, ln_f.bias, nf, statsf);
    kernels.matmul(nf, N, C, head.forward, V, 0, logits);

    const wanted = targets.flat().filter(target => target >= 0).length;
    memory.ints(room.targets, N).set(targets.flat());
    kernels.cross_entropy(logits, room.targets, N, V, 1 / wanted, room.losses); // logits become their gradient
    const parts = memory.floats(room.losses, 2 * N);
    let total = 0;
    for (let n = 0; n < N; n++) total += Math.log(parts[2 * n]) + parts[2 * n + 1];
    if (!gradients) return total / wanted;

    kernels.matmul(logits, N, V, head.backward, C, 0, dn);
    kernels.zero(g, N * C);
    kernels.norm_backward(x[depth], N, C, ln_f.weight, statsf, dn, g);
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
      const [, l, kind] = name.match(/^h\.(\d+)\.(.*)$/);
      const { d, k, forward } = this.blocks[l][kind];
      const [row, column] = [Math.floor(at / k), at % k];
      const panels = this.memory.floats(forward, d * k);
      return panels[Math.floor(column / 8) * d * 8 + row * 8 + (column % 8)];
    });
  }

  // Room for what a pass over N tokens computes, in sequences of up to T. It is kept until a larger one is needed.
  roomFor(purpose, N, T) {
    const old = this.rooms[purpose];
    if (!(old && old.N >= N && old.T >= T && old.rank >= this.rank)) {
      for (const begin of old?.pieces ?? []) this.memory.free(begin);
      this.rooms[purpose] = this.newRoom(N, T, purpose === "training");
    }
    this.room = this.rooms[purpose];
    return this.room;
  }

  // Training keeps what each block computed, for the way back. Writing needs one block's room again and again.
  newRoom(N, T, training) {
    const { C, H, V, depth, rank, memory } = this;
    const pieces = [];
    const floats = count => {
      pieces.push(memory.alloc(count));
      return pieces.at(-1);
    };
    const times = (count, make) => Array.from({ length: count }, make);
    const blockRoom = () => ({
      n1: floats(N * C),
      stats1: floats(2 * N),
      qkv: training ? floats(3 * N * C) : 0, // in writing, the caches hold it
      p: floats(N * H * padded(T)),
      y: floats(N * C),
      x2: floats(N * C),
      n2: floats(N * C),
      stats2: floats(2 * N),
      u: floats(4 * N * C),
      f: floats(4 * N * C),
      xA: Object.fromEntries(Object.keys(KINDS).map(kind => [kind, floats(N * rank)])),
    });
    const room = { N, T, rank, pieces, kept: times(training ? depth : 1, blockRoom) };
    room.x = times(training ? depth + 1 : 1, () => floats(N * C)); // the stream between the blocks
    Object.assign(room, { nf: floats(N * C), statsf: floats(2 * N), logits: floats(training ? N * V : V) });
    if (!training) return room;
    Object.assign(room, { targets: floats(N), losses: floats(2 * N), h: floats(N * rank), dp: floats(T) });
    Object.assign(room, {
      g: floats(N * C),
      dn: floats(N * C),
      df: floats(4 * N * C),
      dqkv: floats(3 * N * C),
    });
    return room;
  }
}

function padded(count) {
  return Math.ceil(count / 4) * 4;
}
