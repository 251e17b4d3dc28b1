// The safetensors format: 8 bytes that tell the header's length, the header in JSON, then all numbers.
import { LabError } from "./errors.js";

const READERS = {
  F16: bytes => Float32Array.from(new Uint16Array(bytes), halfToFloat),
  BF16: bytes => new Float32Array(Uint32Array.from(new Uint16Array(bytes), bits => bits << 16).buffer),
  F32: bytes => new Float32Array(bytes),
  F64: bytes => Float32Array.from(new Float64Array(bytes)),
};
const BYTES = { F16: 2, BF16: 2, F32: 4, F64: 8 };

// {metadata, tensors: {name: {dtype, shape, data}}}, data a Float32Array, or with `raw` the bytes as they are.
// Throws LabError for a file that is none, or not whole.
export function readSafetensors(buffer, raw = false) {
  const broken = why => new LabError(`This is not a whole safetensors file: ${why}.`);
  if (buffer.byteLength < 8) throw broken(`it has only ${buffer.byteLength} bytes`);
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const start = 8 + length;
  if (start > buffer.byteLength) throw broken("its header is cut off, or it is another kind of file");
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, length)));
  } catch {
    throw broken("its header is no JSON");
  }
  const tensors = {};
  for (const [name, entry] of Object.entries(header ?? {})) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets } = entry ?? {};
    if (!(dtype in BYTES))
      throw new LabError(`${name} is of type ${dtype}: expected floats (F16, BF16, F32).`);
    if (![shape, data_offsets].every(list => Array.isArray(list) && list.every(n => n >= 0))) {
      throw broken(`its header does not say where ${name} is`);
    }
    const [from, to] = data_offsets;
    const count = shape.reduce((product, side) => product * side, 1);
    if (start + to > buffer.byteLength) {
      throw broken(`it has ${buffer.byteLength} bytes and should have ${start + to} or more`);
    }
    if (to - from !== count * BYTES[dtype]) throw broken(`${name} has not as many bytes as its shape needs`);
    const bytes = buffer.slice(start + from, start + to);
    tensors[name] = { dtype, shape, data: raw ? bytes : READERS[dtype](bytes) };
  }
  return { metadata: header?.__metadata__ ?? {}, tensors };
}

// The numbers of a raw tensor, as a Float32Array.
export function floatsOf({ dtype, data }) {
  return READERS[dtype](data);
}

// The bytes of a file with these tensors, {name: {shape, data: Float32Array}}.
export function writeSafetensors(tensors, metadata) {
  const header = { __metadata__: metadata };
  let end = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype: "F32", shape, data_offsets: [end, end + data.byteLength] };
    end += data.byteLength;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = Math.ceil(text.length / 8) * 8; // the numbers begin at a multiple of 8
  const file = new Uint8Array(8 + length + end).fill(32, 8, 8 + length); // 32 is a space
  new DataView(file.buffer).setBigUint64(0, BigInt(length), true);
  file.set(text, 8);
  let at = 8 + length;
  for (const { data } of Object.values(tensors)) {
    file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return file;
}

// float16, given as its 16 bits: 1 of sign, 5 of exponent, 10 of fraction.
function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
