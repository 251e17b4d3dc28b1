// What a Llama does in its own way, see model.js: RMSNorm, heads that share keys and values, rotary positions, SwiGLU,
// and no biases.
import { LLAMA_KINDS } from "../model/layers.js";
import { Model, padded } from "./model.js";

const [Q, K, V] = LLAMA_KINDS;
const [GATE, UP] = ["mlp.gate_proj", "mlp.up_proj"];

export class Llama extends Model {
  attention = "self_attn.o_proj";
  mlp = "mlp.down_proj";
  wpe = 0; // positions turn queries and keys instead

  constructor(config, wasm) {
    super(config, wasm);
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
      for (const kind of LLAMA_KINDS) {
        block[kind] = { ...(await loader.matrix(`${name}.${kind}.weight`, true)), bias: 0 };
      }
      this.blocks.push(block);
    }
    this.ln_f = await loader.vector("model.norm.weight");
    this.angles = this.newAngles();
  }

  // (context, D): for each place D/2 cosines, then D/2 sines.
  newAngles() {
    const { memory, context, D, theta } = this;
    const begin = memory.alloc(context * D);
    const table = memory.floats(begin, context * D);
    for (let place = 0; place < context; place++) {
      for (let c = 0; c < D / 2; c++) {
        const angle = place * theta ** ((-2 * c) / D);
        table[place * D + c] = Math.cos(angle);
        table[place * D + D / 2 + c] = Math.sin(angle);
      }
    }
    return begin;
  }

  norm(x, N, weight, out, stats) {
    this.kernels.rms_norm(x, N, this.C, weight, this.epsilon, out, stats);
  }

  normBackward(x, N, weight, stats, dn, g) {
    this.kernels.rms_norm_backward(x, N, this.C, weight, stats, dn, g);
  }

  attend(l, kept, B, T, past) {
    const { kernels, H, K: shared, D, angles } = this;
    const { n1, q, y, p, xA } = kept;
    const N = B * T;
    const [k, v] = [kept.k, kept.v].map(begin => begin + 4 * past * shared * D);
    this.linearForward(l, Q, n1, N, q, xA[Q]);
    this.linearForward(l, K, n1, N, k, xA[K]);
    this.linearForward(l, V, n1, N, v, xA[V]);
    kernels.rope(q, N, T, past, H, D, angles, 1);
    kernels.rope(k, N, T, past, shared, D, angles, 1);
    for (let b = 0; b < B; b++) {
      const [at, atShared] = [4 * b * T * H * D, 4 * b * T * shared * D]; // bytes
      const [keys, values] = [kept.k + atShared, kept.v + atShared];
      const shares = p + 4 * b * H * T * padded(T);
      kernels.attention(q + at, H * D, keys, values, shared * D, T, past, H, shared, D, shares, y + at);
    }
  }

  attendBackward(l, { q, k, v, n1, p, xA }, B, T, wanted) {
    const { kernels, H, K: shared, D, angles } = this;
    const { dn, more, dq, dk, dv, dp } = this.room;
    const N = B * T;
    kernels.zero(dq, N * H * D);
    for (const gradient of [dk, dv]) kernels.zero(gradient, N * shared * D);
    for (let b = 0; b < B; b++) {
      const [at, to] = [4 * b * T * H * D, 4 * b * T * shared * D];
      const shares = p + 4 * b * H * T * padded(T);
      const gradients = [dq + at, dk + to, dv + to];
      kernels.attention_backward(
        ...[q + at, H * D, k + to, v + to, shared * D, shares, dn + at, T, H, shared, D, ...gradients, dp],
      );
    }
    kernels.rope(dq, N, T, 0, H, D, angles, -1);
    kernels.rope(dk, N, T, 0, shared, D, angles, -1);
    this.linearBackward(l, Q, n1, xA[Q], dq, N, wanted ? dn : 0);
    this.addBackward(l, K, n1, xA[K], dk, N, wanted ? more : 0);
    this.addBackward(l, V, n1, xA[V], dv, N, wanted ? more : 0);
  }

  // As linearBackward, but the gradient at the input is added to `dn`; `more` is room for it.
  addBackward(l, kind, x, c, g, N, more) {
    this.linearBackward(l, kind, x, c, g, N, more);
    if (more) this.kernels.add(more, this.room.dn, N * this.C);
  }

  widen(l, { n2, gate, up, f, xA }, N) {
    this.linearForward(l, GATE, n2, N, gate, xA[GATE]);
    this.linearForward(l, UP, n2, N, up, xA[UP]);
    this.kernels.swiglu(gate, up, f, N * this.inner);
  }

  widenBackward(l, { n2, gate, up, xA }, N) {
    const { df, dn, more } = this.room;
    this.kernels.swiglu_backward(df, gate, up, N * this.inner); // they become the gradients
    this.linearBackward(l, GATE, n2, xA[GATE], gate, N, dn);
    this.addBackward(l, UP, n2, xA[UP], up, N, more);
  }
}
