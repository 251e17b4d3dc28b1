// A model's weights as the GPU reads them: float16 or float32, each row padded with zeros to a multiple of four.
import { floatsOf } from "./safetensors.js";

// Rows of a tensor, raw as in the file, as an array that can be written into a buffer.
export function packed(raw, columns, half) {
  const same = raw.dtype === (half ? "F16" : "F32");
  if (same && columns % 4 === 0) return raw.data;
  const numbers = half ? halvesOf(raw) : floatsOf(raw);
  const rows = numbers.length / columns;
  const stride = 4 * Math.ceil(columns / 4);
  const out = new numbers.constructor(rows * stride);
  for (let row = 0; row < rows; row++) {
    out.set(numbers.subarray(row * columns, (row + 1) * columns), row * stride);
  }
  return out;
}

function halvesOf(raw) {
  return raw.dtype === "F16" ? new Uint16Array(raw.data) : Uint16Array.from(floatsOf(raw), floatToHalf);
}

// The nearest float16, as its 16 bits: 1 of sign, 5 of exponent, 10 of fraction. Of two equally near, the even one.
const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

export function floatToHalf(value) {
  float[0] = value;
  const sign = (bits[0] >>> 16) & 0x8000;
  const size = Math.abs(float[0]);
  if (Number.isNaN(size)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00; // rounds to infinity
  if (size < 2 ** -14) {
    float[0] = size + 0.5; // here float32 has steps of 2^-24, those of the smallest float16, and rounds by itself
    return sign | (bits[0] & 0x7ff);
  }
  const rounded = (bits[0] & 0x7fffffff) + 0xfff + ((bits[0] >>> 13) & 1);
  return sign | ((rounded >>> 13) - (112 << 10));
}
