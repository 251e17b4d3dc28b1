// An adapter copied into the model's memory, all A and B in one stretch. With `learning` four more of the same
// length: the gradient, the two means that AdamW keeps, and a copy of the weights.
import { turned } from "../model/adapter.js";

export class LoadedAdapter {
  constructor({ memory, kernels }, adapter, learning) {
    Object.assign(this, { memory, kernels, adapter });
    this.size = 0;
    this.places = Object.entries(adapter.layers).map(([name, { A, B }]) => {
      const place = { name, A: this.size, B: this.size + A.length };
      this.size += A.length + B.length;
      return place;
    });
    memory.allOrNone(() => {
      for (const part of learning ? ["w", "g", "m", "v", "good"] : ["w"])
        this[part] = memory.alloc(this.size);
    });
    this.write(adapter);
    if (!learning) return;
    for (const part of ["g", "m", "v"]) kernels.zero(this[part], this.size);
    this.keep();
  }

  // Keep a copy of the weights, which `goBack` restores.
  keep() {
    this.memory.floats(this.good, this.size).set(this.memory.floats(this.w, this.size));
  }

  goBack() {
    this.memory.floats(this.w, this.size).set(this.memory.floats(this.good, this.size));
    this.kernels.zero(this.g, this.size);
  }

  // All A and B as they lie in memory, for the model in another worker.
  weights() {
    return this.memory.floats(this.w, this.size).slice();
  }

  setWeights(weights) {
    this.memory.floats(this.w, this.size).set(weights);
  }

  // The gradients, which are zero then.
  takeGradients() {
    const gradients = this.memory.floats(this.g, this.size).slice();
    this.kernels.zero(this.g, this.size);
    return gradients;
  }

  addGradients(gradients) {
    const own = this.memory.floats(this.g, this.size);
    for (let i = 0; i < own.length; i++) own[i] += gradients[i];
  }

  // One step of AdamW along the gradients, which are clipped to norm 1 together and left at zero.
  update(step, rate) {
    const { kernels, w, g, m, v, size } = this;
    const norm = Math.sqrt(kernels.sum_of_squares(g, size));
    const clip = Math.min(1, 1 / (norm + 1e-6));
    kernels.adamw(w, g, m, v, size, rate, 1 - 0.9 ** step, Math.sqrt(1 - 0.999 ** step), clip);
    kernels.zero(g, size);
  }

  // Write numbers in the form of an adapter into a part: the weights "w", or AdamW's means, "m" and "v".
  write({ layers }, part = "w") {
    const all = this.memory.floats(this[part], this.size);
    for (const { name, A, B } of this.places) {
      all.set(layers[name].A, A);
      all.set(layers[name].B, B);
    }
  }

  // A copy of a part as it is now, in the form of an adapter.
  async read(part = "w") {
    const all = this.memory.floats(this[part], this.size);
    const layers = {};
    for (const { name, A, B } of this.places) {
      const { d, k } = this.adapter.layers[name];
      const { r } = this.adapter;
      layers[name] = { d, k, A: all.slice(A, A + r * d), B: all.slice(B, B + r * k) };
    }
    return { ...this.adapter, layers };
  }

  // {layer: {A, B, dA, dB, r, s}}, with dA and dB only for one that learns.
  bypasses({ rank = this.adapter.r, strength = 1, off = [] } = {}) {
    const all = {};
    for (const { name, A, B } of this.places) {
      const bypass = { A: this.w + 4 * A, B: this.w + 4 * B, r: rank, s: strength * this.adapter.s };
      all[name] = this.g ? { ...bypass, dA: this.g + 4 * A, dB: this.g + 4 * B } : bypass;
    }
    return turned(all, { rank, strength, off });
  }

  free() {
    for (const begin of [this.w, this.g, this.m, this.v, this.good]) if (begin) this.memory.free(begin);
  }
}
