// A transformer with LoRA: W' = W + s·A·B, as in `lora_lib.gpt2` and `lora_lib.lora_linear`. It is written once, over the
// operations that a device has: see cpu/model.js and gpu/model.js. What a GPT-2 and a Llama do each in their way is in
// gpt2.js and llama.js.
//
// Each layer's backward pass stands below its forward pass. Forward: the layer's output from its input. Backward:
// `g`, the loss's gradient at the output, becomes the gradient at the input, and, in a LoRA layer, at A and B.
// Nothing else is trained, so nothing else needs a gradient.
//
// Notation: N tokens in all, in sequences of up to T; C the model's width, V its vocabulary; H heads of
// queries and K heads of keys and values, of D numbers each; a layer has d inputs and k outputs; r is the rank. A tensor
// is what the device makes of it: an address in WebAssembly's memory, or a piece of a GPU's buffer. Its shape stands in a
// comment. `text` says what is read: N tokens; if they are `cached`, after `past` tokens whose keys and values are in the
// caches; and where sequences begin, as the device needs it.
import { layerShapes, NAMES, samplePlaces } from "./layers.js";

// A family of models says {attentionOut, mlpOut}: the kinds of the last layer of each; `cacheWidths`: what is kept of
// each token that was read; and how it does `loadFrom`, `norm`, `attend`, `widen`, each with its backward pass, and their
// room: `widths` forward, `gradientWidths` backward.
export class Transformer {
  constructor(config) {
    Object.assign(this, config, { config, rooms: {}, bypasses: {} });
    this.kinds = Object.keys(NAMES[config.family].shapes);
    this.blockName = NAMES[config.family].block;
    this.shapes = layerShapes(config);
    this.restart();
  }

  // Begin a new text.
  restart() {
    this.read = 0; // tokens in the caches
  }

  // ---- A linear layer with LoRA beside it ----------------------------------------------------------------------

  // y = x·W + bias + s·(x·A)·B.  x (N, d), y (N, k); c (N, r) is kept for the backward pass.
  linearForward(l, kind, x, N, y, c) {
    const layer = this.blocks[l][kind];
    this.matmul(x, N, layer, y);
    const lora = this.bypasses[`${this.blockName}.${l}.${kind}`];
    if (!lora) return;
    this.project(x, N, layer.d, lora.A, lora.r, lora.s, c); // c = s·x·A
    this.expand(c, N, lora.r, lora.B, layer.k, y); //          y += c·B
  }

  // g (N, k) is the gradient at y. dx (N, d) becomes the gradient at x, or is null where nobody needs it.
  linearBackward(l, kind, x, c, g, N, dx) {
    const layer = this.blocks[l][kind];
    if (dx) this.matmulBackward(g, N, layer, dx); // dx = g·Wᵀ
    const lora = this.bypasses[`${this.blockName}.${l}.${kind}`];
    if (lora) this.loraBackward(lora, layer, x, c, g, N, dx);
  }

  // LoRA's own backward pass. A is kept transposed, (r, d), as in an adapter's file, and so is its gradient.
  loraBackward({ A, B, dA, dB, r, s }, { d, k }, x, c, g, N, dx) {
    const { h } = this.room;
    this.project(g, N, k, B, r, s, h); //    h = s·g·Bᵀ       (N, r)
    this.outer(h, N, r, x, d, dA); //        dA = xᵀ·h        (d, r)
    this.outer(c, N, r, g, k, dB); //        dB = cᵀ·g        (r, k), with c = s·x·A
    if (dx) this.expand(h, N, r, A, d, dx); // dx += h·Aᵀ     (N, d)
  }

  // As linearBackward, but the gradient at the input is added to `dx`; `more` is room for it.
  addBackward(l, kind, x, c, g, N, dx, more) {
    this.linearBackward(l, kind, x, c, g, N, dx && more);
    if (dx) this.add(more, dx, N, this.C);
  }

  // ---- A block: attention, then MLP, each added to the residual stream -----------------------------------------

  // x (N, C) to out (N, C). `kept` takes what the backward pass needs.
  blockForward(l, x, out, kept, text) {
    const { C, attentionOut, mlpOut } = this;
    const { ln_1, ln_2 } = this.blocks[l];
    const { N } = text;
    this.norm(x, N, ln_1, kept.n1, kept.stats1);
    this.attend(l, kept, text); // from n1 to y
    this.linearForward(l, attentionOut, kept.y, N, kept.x2, kept.xA[attentionOut]);
    this.add(x, kept.x2, N, C);

    this.norm(kept.x2, N, ln_2, kept.n2, kept.stats2);
    this.widen(l, kept, N); // from n2 to f
    this.linearForward(l, mlpOut, kept.f, N, out, kept.xA[mlpOut]);
    this.add(kept.x2, out, N, C);
  }

  // g (N, C), the gradient at the block's output, becomes the gradient at its input x. `lowest`: no block below has
  // LoRA in it, so the gradient at x is not needed.
  blockBackward(l, x, kept, g, text, lowest) {
    const { attentionOut, mlpOut } = this;
    const { ln_1, ln_2 } = this.blocks[l];
    const { dn, df } = this.room; // room for gradients on the way
    const { N } = text;
    this.linearBackward(l, mlpOut, kept.f, kept.xA[mlpOut], g, N, df);
    this.widenBackward(l, kept, N); // from df to dn
    this.normBackward(kept.x2, N, ln_2, kept.stats2, dn, g); // adds to the residual stream's gradient

    this.linearBackward(l, attentionOut, kept.y, kept.xA[attentionOut], g, N, dn);
    this.attendBackward(l, kept, text, lowest ? null : dn); // from dn to dn
    if (!lowest) this.normBackward(x, N, ln_1, kept.stats1, dn, g);
  }

  // Where attention finds what it knows of each token, by the names of `cacheWidths`: what this pass computed, and in
  // writing the caches, which take it up.
  remembered(l, kept, text) {
    if (!text.cached) return kept;
    for (const [part, width] of Object.entries(this.cacheWidths)) {
      this.append(kept[part], this.caches[l][part], width, text);
    }
    return this.caches[l];
  }

  // ---- The whole -----------------------------------------------------------------------------------------------

  // From the room's ids to the stream after the last block, its last x.
  forward(text) {
    const { x, kept } = this.room;
    const of = (list, l) => list[l % list.length]; // in writing there is one of each
    this.embed(x[0], text);
    for (let l = 0; l < this.depth; l++) this.blockForward(l, of(x, l), of(x, l + 1), of(kept, l), text);
  }

  // The logits of N tokens, from the one at `first` on. The head is the embedding, transposed.
  headForward(N, first = 0) {
    const { x, nf, statsf, logits } = this.room;
    this.norm(x.at(-1), N, this.ln_f, nf, statsf, first);
    this.matmul(nf, N, this.wte, logits);
  }

  // g (N, C) becomes the gradient at the stream after the last block, for the gradient at the logits.
  headBackward(N) {
    const { x, dn, g, statsf, logits } = this.room;
    this.matmulBackward(logits, N, this.wte, dn);
    this.zero(g, N, this.C);
    this.normBackward(x.at(-1), N, this.ln_f, statsf, dn, g);
  }

  // From g, the gradient at the stream after the last block, to those at all A and B of the adapter in use.
  backward(text) {
    const { x, kept, g } = this.room;
    const lowest = Math.min(...Object.keys(this.bypasses).map(layer => Number(layer.split(".")[1])));
    for (let l = this.depth - 1; l >= lowest; l--) {
      this.blockBackward(l, x[l], kept[l], g, text, l === lowest);
    }
  }

  // ---- Room ----------------------------------------------------------------------------------------------------

  // `sizes`: {N, M, p, dp, rank}: tokens, those whose logits are computed, attention's shares of them in a block, and their
  // gradients. What a room for these and for all before it needs; null if the room that is there is enough.
  larger(purpose, sizes) {
    const old = this.rooms[purpose]?.sizes ?? {};
    const entries = Object.entries(sizes);
    if (entries.every(([what, size]) => old[what] >= size)) return null;
    return Object.fromEntries(entries.map(([what, size]) => [what, Math.max(size, old[what] ?? 0)]));
  }

  // Training keeps what each block computed, for the backward pass. Writing uses one block's room again and again.
  newRoom(sizes, training) {
    const { C, H, D, L, depth, inner, kinds } = this;
    const { N, M, p, dp, rank } = sizes;
    const pieces = [];
    const floats = count => {
      pieces.push(this.alloc(count));
      return pieces.at(-1);
    };
    const rows = (width, count = N) => floats(count * this.padded(width));
    const each = widths =>
      Object.fromEntries(Object.entries(widths).map(([part, width]) => [part, rows(width)]));
    const times = (count, make) => Array.from({ length: count }, make);
    const blockRoom = () => ({
      ...each({ n1: C, stats1: 2, y: H * D, x2: C, n2: C, stats2: 2, f: inner }),
      ...each({ ...this.widths, ...this.cacheWidths }),
      p: floats(p),
      xA: Object.fromEntries(kinds.map(kind => [kind, floats(N * rank)])),
    });
    const room = { sizes, pieces, ids: floats(N), kept: times(training ? depth : 1, blockRoom) };
    room.x = times(training ? depth + 1 : 1, () => rows(C)); // the stream between the blocks
    Object.assign(room, { ...each({ nf: C, statsf: 2 }), logits: rows(L, M) });
    if (!training) return room;
    Object.assign(room, { targets: floats(N), losses: floats(2 * N), h: floats(N * rank), dp: floats(dp) });
    return Object.assign(room, each({ g: C, dn: Math.max(C, H * D), df: inner, ...this.gradientWidths }));
  }

  // ---- The base's fingerprint ----------------------------------------------------------------------------------

  // Out of the weights of these layers: see `samplePlaces`.
  async baseSample(names) {
    const number = ([name, at]) => {
      const [, l, kind] = name.match(/^\w+\.(\d+)\.(.*)$/);
      const { k } = this.shapes[name];
      return this.weightAt(this.blocks[l][kind], Math.floor(at / k), at % k);
    };
    return Promise.all(samplePlaces(this.config, names).map(number));
  }
}

// All columns of a tensor (N, width), as attention takes them; a part of them begins at `first`.
export function whole(x, width) {
  return { x, width, first: 0 };
}
