// Weights from a file into the GPU's memory: float16 or float32, each row padded with zeros to a multiple of four.
import { LabError } from "../errors.js";
import { halfToFloat, numbersOf } from "../files/safetensors.js";

const AT_ONCE = 2 ** 22; // numbers that are uploaded at once
const LARGEST = 65520; // from here on, float16 rounds to infinity

// Takes the weights of a model out of `tensors`, see `openModel`. Afterwards `rounded` says whether float16 has changed
// any of them.
export class Loader {
  constructor(gpu, tensors, news) {
    Object.assign(this, { gpu, tensors, news, rounded: false, done: 0 });
    this.all = Object.values(tensors).reduce((sum, { bytes }) => sum + bytes, 0);
  }

  // In float32.
  vector(name) {
    return this.tensor(name, false);
  }

  // A weight, which lies here as in the file: W (d, k), or, if `transposed`, Wᵀ (k, d).
  async matrix(name, transposed = false) {
    const [rows, columns] = this.tensors[name].shape;
    const [d, k] = transposed ? [columns, rows] : [rows, columns];
    return { name, transposed, d, k, W: await this.table(name) };
  }

  // A matrix of which single rows are read.
  table(name) {
    return this.tensor(name, this.gpu.half);
  }

  numbers(values) {
    const tensor = this.gpu.alloc(values.length);
    this.gpu.write(tensor, values);
    return tensor;
  }

  // All rows and columns padded to fours.
  async tensor(name, half) {
    const { dtype, shape, read } = this.tensors[name];
    const columns = shape.at(-1);
    const rows = shape.length === 1 ? 1 : shape[0];
    const stride = padded(columns);
    const count = (rows === 1 ? 1 : padded(rows)) * stride;
    const tensor = this.gpu.alloc(half ? count / 2 : count);
    const [lines, atOnce] = rows === 1 ? [shape[0], shape[0]] : [rows, Math.ceil(AT_ONCE / columns)];
    for (let row = 0; row < lines; row += atOnce) {
      const bytes = await read(row, Math.min(atOnce, lines - row));
      this.gpu.write(tensor, this.packed(name, dtype, bytes, columns, half), (half ? 2 : 4) * row * stride);
      this.done += bytes.byteLength;
      this.news(Math.min(1, this.done / this.all));
    }
    return tensor;
  }

  // Rows of a tensor, raw `bytes` of the file, as an array that can be written into a buffer.
  packed(name, dtype, bytes, columns, half) {
    const numbers = half ? this.halves(name, dtype, bytes) : numbersOf(dtype, bytes);
    if (!numbers.every(half ? finiteHalf : Number.isFinite)) {
      throw new LabError(`${this.tensors[name].file}: ${name} contains NaN or infinity.`);
    }
    const stride = padded(columns);
    if (stride === columns) return numbers;
    const rows = numbers.length / columns;
    const out = new numbers.constructor(rows * stride);
    for (let row = 0; row < rows; row++) {
      out.set(numbers.subarray(row * columns, (row + 1) * columns), row * stride);
    }
    return out;
  }

  halves(name, dtype, bytes) {
    if (dtype === "F16") return new Uint16Array(bytes);
    const numbers = numbersOf(dtype, bytes);
    if (numbers.some(number => Math.abs(number) >= LARGEST && Number.isFinite(number))) {
      throw new LabError(
        `${this.tensors[name].file}: ${name} has numbers too large for 16 bits: choose the processor.`,
      );
    }
    const halves = Uint16Array.from(numbers, floatToHalf);
    this.rounded ||= halves.some((half, i) => halfToFloat(half) !== numbers[i]);
    return halves;
  }
}

function padded(count) {
  return 4 * Math.ceil(count / 4);
}

function finiteHalf(bits) {
  return (bits & 0x7c00) !== 0x7c00;
}

// The nearest float16, as its 16 bits: 1 of sign, 5 of exponent, 10 of fraction. Of two equally near, the even one.
const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

export function floatToHalf(value) {
  float[0] = value;
  const sign = (bits[0] >>> 16) & 0x8000;
  const size = Math.abs(float[0]);
  if (Number.isNaN(size)) return 0x7e00;
  if (size >= LARGEST) return sign | 0x7c00;
  if (size < 2 ** -14) {
    float[0] = size + 0.5; // here float32 has steps of 2^-24, those of the smallest float16, and rounds by itself
    return sign | (bits[0] & 0x7ff);
  }
  const rounded = (bits[0] & 0x7fffffff) + 0xfff + ((bits[0] >>> 13) & 1);
  return sign | ((rounded >>> 13) - (112 << 10));
}
