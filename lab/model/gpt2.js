// What a GPT-2 does in its own way, see transformer.js: LayerNorm, one layer for queries, keys and values, GELU.
import { KINDS } from "./layers.js";

const [QKV, , FC] = KINDS;

// A GPT-2 on a device.
export const GPT2 = Device =>
  class extends Device {
    attentionOut = "attn.c_proj";
    mlpOut = "mlp.c_proj";

    constructor(config, ...rest) {
      super({ ...config, K: config.H, D: config.C / config.H }, ...rest);
      this.cacheWidths = { qkv: 3 * this.C };
      this.widths = { u: this.inner };
      this.gradientWidths = { dqkv: 3 * this.C };
    }

    async loadFrom(loader) {
      const bias = name => loader.vector(`${name}.bias`);
      const norm = async name => ({ weight: await loader.vector(`${name}.weight`), bias: await bias(name) });
      this.wte = await loader.matrix("wte.weight", true);
      this.wpe = await loader.table("wpe.weight"); // (context, C)
      this.blocks = [];
      for (let l = 0; l < this.depth; l++) {
        const block = { ln_1: await norm(`h.${l}.ln_1`), ln_2: await norm(`h.${l}.ln_2`) };
        for (const kind of KINDS) {
          const name = `h.${l}.${kind}`;
          block[kind] = { ...(await loader.matrix(`${name}.weight`)), bias: await bias(name) };
        }
        this.blocks.push(block);
      }
      this.ln_f = await norm("ln_f");
    }

    norm(x, N, { weight, bias }, out, stats, first = 0) {
      this.layerNorm(x, N, weight, bias, out, stats, first);
    }

    normBackward(x, N, { weight }, stats, dn, g) {
      this.layerNormBackward(x, N, weight, stats, dn, g);
    }

    // Queries, keys and values, side by side in qkv (N, 3·C).
    thirds(qkv) {
      return [0, 1, 2].map(part => ({ x: qkv, width: 3 * this.C, first: part * this.C }));
    }

    attend(l, kept, text) {
      this.linearForward(l, QKV, kept.n1, text.N, kept.qkv, kept.xA[QKV]);
      const [q] = this.thirds(kept.qkv);
      const [, k, v] = this.thirds(this.remembered(l, kept, text).qkv);
      this.attention([q, k, v], kept.p, kept.y, text);
    }

    attendBackward(l, { qkv, n1, p, xA }, text, dx) {
      const { dn, dqkv } = this.room;
      this.attentionBackward(this.thirds(qkv), p, dn, this.thirds(dqkv), text);
      this.linearBackward(l, QKV, n1, xA[QKV], dqkv, text.N, dx);
    }

    widen(l, { n2, u, f, xA }, N) {
      this.linearForward(l, FC, n2, N, u, xA[FC]);
      this.gelu(u, f, N, this.inner);
    }

    widenBackward(l, { n2, u, xA }, N) {
      const { df, dn } = this.room;
      this.geluBackward(u, df, N, this.inner);
      this.linearBackward(l, FC, n2, xA[FC], df, N, dn);
    }
  };
