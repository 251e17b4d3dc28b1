// What a GPT-2 does in its own way, see model.js: LayerNorm, one layer for queries, keys and values, GELU.
import { KINDS } from "../model/layers.js";
import { Model, padded } from "./model.js";

export class GPT2 extends Model {
  attention = "attn.c_proj";
  mlp = "mlp.c_proj";

  constructor(config, wasm) {
    super({ ...config, D: config.C / config.H }, wasm);
    this.cacheWidths = { qkv: 3 * this.C };
    this.widths = { u: this.inner };
    this.gradientWidths = { dqkv: 3 * this.C };
  }

  async loadFrom(loader) {
    this.wte = await loader.matrix("wte.weight", true);
    this.wpe = await loader.vector("wpe.weight"); // (context, C)
    this.blocks = [];
    for (let l = 0; l < this.depth; l++) {
      const block = { ln_1: await loader.norm(`h.${l}.ln_1`), ln_2: await loader.norm(`h.${l}.ln_2`) };
      for (const kind of KINDS) block[kind] = await loader.linear(`h.${l}.${kind}`);
      this.blocks.push(block);
    }
    this.ln_f = await loader.norm("ln_f");
  }

  norm(x, N, { weight, bias }, out, stats) {
    this.kernels.norm(x, N, this.C, weight, bias, this.epsilon, out, stats);
  }

  normBackward(x, N, { weight }, stats, dn, g) {
    this.kernels.norm_backward(x, N, this.C, weight, stats, dn, g);
  }

  attend(l, kept, B, T, past) {
    const { kernels, C, H, D } = this;
    const { n1, y, xA, p } = kept;
    this.linearForward(l, "attn.c_attn", n1, B * T, kept.qkv + 4 * past * 3 * C, xA["attn.c_attn"]);
    for (let b = 0; b < B; b++) {
      const at = 4 * b * T * C; // where this sequence's rows begin, in bytes
      const keys = kept.qkv + 3 * at + 4 * C;
      const queries = kept.qkv + 3 * at + 4 * past * 3 * C;
      const shares = p + 4 * b * H * T * padded(T);
      kernels.attention(queries, 3 * C, keys, keys + 4 * C, 3 * C, T, past, H, H, D, shares, y + at);
    }
  }

  attendBackward(l, { qkv, n1, xA, p }, B, T, wanted) {
    const { kernels, C, H, D } = this;
    const { dn, dqkv, dp } = this.room;
    kernels.zero(dqkv, 3 * B * T * C);
    for (let b = 0; b < B; b++) {
      const at = 4 * b * T * C;
      const [q, k, v] = [0, 1, 2].map(part => qkv + 3 * at + 4 * part * C);
      const [dq, dk, dv] = [0, 1, 2].map(part => dqkv + 3 * at + 4 * part * C);
      const shares = p + 4 * b * H * T * padded(T);
      kernels.attention_backward(q, 3 * C, k, v, 3 * C, shares, dn + at, T, H, H, D, dq, dk, dv, dp);
    }
    this.linearBackward(l, "attn.c_attn", n1, xA["attn.c_attn"], dqkv, B * T, wanted ? dn : 0);
  }

  widen(l, { n2, u, f, xA }, N) {
    this.linearForward(l, "mlp.c_fc", n2, N, u, xA["mlp.c_fc"]);
    this.kernels.gelu(u, f, N * this.inner); // u becomes the slope
  }

  widenBackward(l, { n2, u, xA }, N) {
    const { df, dn } = this.room;
    this.kernels.multiply(u, df, N * this.inner);
    this.linearBackward(l, "mlp.c_fc", n2, xA["mlp.c_fc"], df, N, dn);
  }
}
