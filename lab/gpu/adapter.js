// An adapter copied into the GPU's memory, all A and B in one stretch. With `learning` four more of the same length:
// the gradient, the two means that AdamW keeps, and the weights of the last good loss.
import { turned } from "../model/adapter.js";

export class GPUAdapter {
  constructor(gpu, adapter, learning) {
    Object.assign(this, { gpu, adapter, size: 0 });
    const { r } = adapter;
    this.places = Object.entries(adapter.layers).map(([name, { d, k }]) => {
      const place = { name, d, k, A: this.size, B: this.size + aligned(r * padded(d)) };
      this.size = place.B + aligned(r * padded(k));
      return place;
    });
    this.parts = learning ? ["w", "g", "m", "v", "good"] : ["w"];
    for (const part of this.parts) this[part] = gpu.alloc(this.size);
    this.write(adapter);
    if (learning) this.write(adapter, "good");
  }

  // Write numbers in the form of an adapter into a part: the weights "w", or AdamW's means, "m" and "v".
  write({ layers }, part = "w") {
    const all = new Float32Array(this.size);
    for (const { name, d, k, A, B } of this.places) {
      all.set(withRowsOf(padded(d), layers[name].A, d), A);
      all.set(withRowsOf(padded(k), layers[name].B, k), B);
    }
    this.gpu.write(this[part], all);
  }

  // A copy of a part as it is now, in the form of an adapter.
  async read(part = "w") {
    const [all] = await this.gpu.read([this[part]]);
    const { r } = this.adapter;
    const cut = (at, m) => withRowsOf(m, all.subarray(at, at + r * padded(m)), padded(m));
    const layers = {};
    for (const { name, d, k, A, B } of this.places) layers[name] = { d, k, A: cut(A, d), B: cut(B, k) };
    return { ...this.adapter, layers };
  }

  // Restore the weights of the last good loss.
  goBack() {
    this.gpu.copy(this.good, this.w);
  }

  // {layer: {A, B, dA, dB, r, s}}, with dA and dB only for one that learns.
  bypasses({ rank = this.adapter.r, strength = 1, off = [] } = {}) {
    const rows = (part, at, m) => ({ buffer: this[part].buffer, offset: 4 * at, size: 4 * rank * padded(m) });
    const all = {};
    for (const { name, d, k, A, B } of this.places) {
      all[name] = { A: rows("w", A, d), B: rows("w", B, k), r: rank, s: strength * this.adapter.s };
      if (this.g) Object.assign(all[name], { dA: rows("g", A, d), dB: rows("g", B, k) });
    }
    return turned(all, { rank, strength, off });
  }

  free() {
    for (const part of this.parts) this.gpu.free(this[part]);
  }
}

// A view of a buffer must begin at a multiple of 256 bytes, 64 numbers.
function aligned(count) {
  return Math.ceil(count / 64) * 64;
}

function padded(count) {
  return Math.ceil(count / 4) * 4;
}

// The matrix M, which has rows of `from` numbers, with rows of `to` numbers: cut, or padded with zeros.
function withRowsOf(to, M, from) {
  if (from === to) return M.slice();
  const rows = M.length / from;
  const out = new Float32Array(rows * to);
  for (let row = 0; row < rows; row++) {
    out.set(M.subarray(row * from, row * from + Math.min(from, to)), row * to);
  }
  return out;
}
