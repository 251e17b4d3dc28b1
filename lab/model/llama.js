// What a Llama does in its own way, see transformer.js: RMSNorm, heads that share keys and values, rotary positions,
// SwiGLU, and no biases.
import { LLAMA_KINDS } from "./layers.js";
import { whole } from "./transformer.js";

const [Q, K, V, , GATE, UP] = LLAMA_KINDS;

// A Llama on a device.
export const Llama = Device =>
  class extends Device {
    attentionOut = "self_attn.o_proj";
    mlpOut = "mlp.down_proj";
    wpe = null; // positions turn queries and keys instead

    constructor(...made) {
      super(...made);
      const { H, K: shared, D, C, inner } = this;
      this.cacheWidths = { k: shared * D, v: shared * D };
      this.widths = { q: H * D, gate: inner, up: inner };
      this.gradientWidths = { more: C, dq: H * D, dk: shared * D, dv: shared * D };
    }

    async loadFrom(loader) {
      this.wte = await loader.matrix("model.embed_tokens.weight", true);
      this.blocks = [];
      for (let l = 0; l < this.depth; l++) {
        const name = `model.layers.${l}`;
        const block = {
          ln_1: await loader.vector(`${name}.input_layernorm.weight`),
          ln_2: await loader.vector(`${name}.post_attention_layernorm.weight`),
        };
        for (const kind of LLAMA_KINDS) block[kind] = await loader.matrix(`${name}.${kind}.weight`, true);
        this.blocks.push(block);
      }
      this.ln_f = await loader.vector("model.norm.weight");
      this.angles = loader.numbers(this.newAngles());
    }

    // (context, D): for each place D/2 cosines, then D/2 sines.
    newAngles() {
      const { context, D, theta } = this;
      const table = new Float32Array(context * D);
      for (let place = 0; place < context; place++) {
        for (let c = 0; c < D / 2; c++) {
          const angle = place * theta ** ((-2 * c) / D);
          table[place * D + c] = Math.cos(angle);
          table[place * D + D / 2 + c] = Math.sin(angle);
        }
      }
      return table;
    }

    norm(x, N, weight, out, stats, first = 0) {
      this.rmsNorm(x, N, weight, out, stats, first);
    }

    normBackward(x, N, weight, stats, dn, g) {
      this.rmsNormBackward(x, N, weight, stats, dn, g);
    }

    // Queries, keys and values, or their gradients.
    parts(q, k, v) {
      const { H, K: shared, D } = this;
      return [whole(q, H * D), whole(k, shared * D), whole(v, shared * D)];
    }

    attend(l, kept, text) {
      const { n1, q, k, v, xA } = kept;
      this.linearForward(l, Q, n1, text.N, q, xA[Q]);
      this.linearForward(l, K, n1, text.N, k, xA[K]);
      this.linearForward(l, V, n1, text.N, v, xA[V]);
      this.rope(q, this.H, text);
      this.rope(k, this.K, text);
      const all = this.remembered(l, kept, text);
      this.attention(this.parts(q, all.k, all.v), kept.p, kept.y, text);
    }

    attendBackward(l, { q, k, v, n1, p, xA }, text, dx) {
      const { dn, more, dq, dk, dv } = this.room;
      this.attentionBackward(this.parts(q, k, v), p, dn, this.parts(dq, dk, dv), text);
      this.ropeBackward(dq, this.H, text);
      this.ropeBackward(dk, this.K, text);
      this.linearBackward(l, Q, n1, xA[Q], dq, text.N, dx);
      this.addBackward(l, K, n1, xA[K], dk, text.N, dx, more);
      this.addBackward(l, V, n1, xA[V], dv, text.N, dx, more);
    }

    widen(l, { n2, gate, up, f, xA }, N) {
      this.linearForward(l, GATE, n2, N, gate, xA[GATE]);
      this.linearForward(l, UP, n2, N, up, xA[UP]);
      this.swiglu(gate, up, f, N, this.inner);
    }

    widenBackward(l, { n2, gate, up, xA }, N) {
      const { df, dn, more } = this.room;
      this.swigluBackward(df, gate, up, N, this.inner); // they become the gradients
      this.linearBackward(l, GATE, n2, xA[GATE], gate, N, dn);
      this.addBackward(l, UP, n2, xA[UP], up, N, dn, more);
    }
  };
