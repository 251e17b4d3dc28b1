// A model's weights as the GPU reads them: float16 or float32, each row padded with zeros to a multiple of four.
import { LabError } from "../errors.js";
import { halfToFloat, numbersOf } from "../files/safetensors.js";

const LARGEST = 65520; // from here on, float16 rounds to infinity

// Puts the weights of a file, see `openModel`, into the form of the GPU. Afterwards `rounded` says whether float16 has
// changed any of them.
export class Packer {
  rounded = false;

  // Rows of a tensor, raw `bytes` of the file, as an array that can be written into a buffer.
  packed(name, dtype, bytes, columns, half) {
    const numbers = half ? this.halves(name, dtype, bytes) : numbersOf(dtype, bytes);
    if (!numbers.every(half ? finiteHalf : Number.isFinite)) {
      throw new LabError(`model.safetensors: ${name} contains NaN or infinity.`);
    }
    if (columns % 4 === 0) return numbers;
    const rows = numbers.length / columns;
    const stride = 4 * Math.ceil(columns / 4);
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
        `model.safetensors: ${name} has numbers too large for 16 bits: choose the processor.`,
      );
    }
    const halves = Uint16Array.from(numbers, floatToHalf);
    this.rounded ||= halves.some((half, i) => halfToFloat(half) !== numbers[i]);
    return halves;
  }
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
