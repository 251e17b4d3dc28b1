// Weights from a file into the model's memory, a few megabytes at a time, in the layout that kernels.c describes.
import { LabError } from "../errors.js";
import { halfToFloat } from "../files/safetensors.js";

const AT_ONCE = 2 ** 20; // numbers
const LARGEST = 255; // that 16 bits can hold, see kernels.c

// Takes the weights of a model out of `tensors`, see `openModel`.
export class Loader {
  constructor(model, tensors, exact, news) {
    Object.assign(this, { tensors, exact, news, kernels: model.kernels, memory: model.memory });
    this.done = 0; // bytes
    this.all = Object.values(tensors).reduce((sum, { bytes }) => sum + bytes, 0);
    this.wide = 0; // matrices that are kept in float32
    this.error = 0; // the largest that 16 bits made
    const longest = Math.max(...Object.values(tensors).map(({ shape }) => shape.at(-1)));
    const most = AT_ONCE + 8 * longest; // numbers
    this.raw = this.memory.alloc(most / 2); // for those of 16 bits, as in the file
    this.floats = this.memory.alloc(most);
    this.found = this.memory.alloc(2);
  }

  free() {
    for (const begin of [this.raw, this.floats, this.found]) this.memory.free(begin);
  }

  // How the matrices are stored, and whether 16 bits have changed any number.
  get result() {
    return { stored: this.wide ? "float32" : "float16", rounded: this.error > 0 };
  }

  // In float32, as it is.
  async vector(name) {
    const { shape } = this.tensors[name];
    const [rows, length = 1] = shape;
    const out = this.memory.alloc(rows * length);
    await this.pieces(name, rows, length, 1, (first, count) => {
      const numbers = this.memory.floats(this.floats, count * length);
      if (!numbers.every(Number.isFinite)) throw this.notFinite(name);
      this.memory.floats(out + 4 * first * length, count * length).set(numbers);
    });
    return out;
  }

  // A matrix of which single rows are read.
  table(name) {
    return this.vector(name);
  }

  numbers(values) {
    const begin = this.memory.alloc(values.length);
    this.memory.floats(begin, values.length).set(values);
    return begin;
  }

  // A weight in panels: {d, k, panels, packed}. The file has W (d, k), or, if `transposed`, Wᵀ (k, d), whose k is
  // filled up to a multiple of 8.
  async matrix(name, transposed = false) {
    const { dtype } = this.tensors[name];
    return (
      (this.exact && dtype !== "F16" ? null : await this.tryMatrix(name, transposed, 1)) ??
      (await this.tryMatrix(name, transposed, 0))
    );
  }

  // null if `packed` 16 bits are too few for a weight's size.
  async tryMatrix(name, transposed, packed) {
    const { kernels, memory, floats, found } = this;
    const [rows, length] = this.tensors[name].shape;
    const d = transposed ? length : rows;
    const k = transposed ? 8 * Math.ceil(rows / 8) : length;
    const panels = memory.alloc(packed ? (d * k) / 2 : d * k);
    memory.floats(found, 2).fill(0);
    await this.pieces(name, rows, length, 8, (first, count) => {
      if (transposed) kernels.pack_columns(floats, first, count, d, packed, panels, found);
      else kernels.pack(floats, first, count, d, k, packed, panels, found);
    });
    const [largest, error] = memory.floats(found, 2);
    if (!Number.isFinite(largest)) throw this.notFinite(name);
    if (packed && largest > LARGEST) {
      memory.free(panels);
      return null;
    }
    this.error = Math.max(this.error, error);
    if (!packed) this.wide++;
    return { d, k, panels, packed };
  }

  // Read a tensor (rows, length) and hand it over in pieces, as float32 at `this.floats`: a multiple of `step` rows,
  // except for the last piece.
  async pieces(name, rows, length, step, use) {
    const { dtype, read } = this.tensors[name];
    const most = Math.max(step, Math.floor(AT_ONCE / length / step) * step);
    for (let first = 0; first < rows; first += most) {
      const count = Math.min(most, rows - first);
      const bytes = await read(first, count);
      this.convert(bytes, dtype, count * length);
      use(first, count);
      this.done += bytes.byteLength;
      this.news(Math.min(1, this.done / this.all));
    }
  }

  notFinite(name) {
    return new LabError(`${this.tensors[name].file}: ${name} contains NaN or infinity.`);
  }

  convert(bytes, dtype, count) {
    const { kernels, memory, raw, floats } = this;
    if (dtype === "F32") memory.floats(floats, count).set(new Float32Array(bytes));
    else {
      new Uint8Array(memory.wasm.buffer, raw, bytes.byteLength).set(new Uint8Array(bytes));
      if (dtype === "F16") kernels.half_to_float(raw, floats, count);
      else kernels.bfloat_to_float(raw, floats, count);
    }
  }
}

// One number of a matrix.
export function weightAt(memory, { d, panels, packed }, row, column) {
  const eight = Math.floor(column / 8) * d + row;
  const place = column % 8;
  if (!packed) return memory.floats(panels, 8 * eight + 8)[8 * eight + place];
  const halves = new Uint16Array(memory.wasm.buffer, panels + 16 * eight, 8);
  return halfToFloat(halves[place < 4 ? 2 * place : 2 * place - 7]) / 256;
}
