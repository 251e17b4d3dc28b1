// The safetensors format: 8 bytes that tell the header's length, the header in JSON, then all numbers.
import { LabError } from "../errors.js";
import { jsonOf } from "./json.js";

export const BYTES = { F16: 2, BF16: 2, F32: 4 };
const READERS = {
  F16: bytes => Float32Array.from(new Uint16Array(bytes), halfToFloat),
  BF16: bytes => new Float32Array(Uint32Array.from(new Uint16Array(bytes), bits => bits << 16).buffer),
  F32: bytes => new Float32Array(bytes),
};
const LONGEST_HEADER = 100e6; // bytes; that of any real file is far shorter

// How files of other kinds begin, which are renamed now and then.
const MAGIC = [
  [
    "GGUF",
    "a GGUF file, not safetensors: give it its own ending, .gguf. The page of the chat model opens it.",
  ],
  [
    "PK",
    "a zip, or a file that PyTorch has pickled (.bin, .pt), not safetensors: save the model with save_pretrained.",
  ],
];

const begins = (bytes, letters) =>
  [...letters].every((letter, i) => new Uint8Array(bytes)[i] === letter.charCodeAt(0));

// A file of any size, given as a Blob, and its name: only the header is read. {metadata, tensors: {name: {file, dtype,
// shape, bytes, read}}}, where `read(first, rows)` gives the raw bytes of some rows of the first axis, all by default.
// Throws LabError for a file of another kind, or one that is cut off.
export async function openSafetensors(blob, file = "model.safetensors") {
  const broken = why =>
    new LabError(`${file} is not a whole safetensors file: ${why}. Download it, or save it, again.`);
  if (blob.size < 8) throw broken(`it has only ${blob.size} bytes`);
  const head = await blob.slice(0, 8).arrayBuffer();
  const magic = MAGIC.find(([letters]) => begins(head, letters));
  if (magic) throw new LabError(`${file} is ${magic[1]}`);
  const length = Number(new DataView(head).getBigUint64(0, true));
  const start = 8 + length;
  if (start > blob.size || length > LONGEST_HEADER) {
    throw broken("its header is cut off, or it is another kind of file");
  }
  const header = headerOf(await blob.slice(8, start).arrayBuffer());
  if (!header) throw broken("its header is not JSON");
  const tensors = Object.create(null); // a file may name a tensor "constructor"
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets } = entry ?? {};
    const counts = list => Array.isArray(list) && list.every(n => Number.isSafeInteger(n) && n >= 0);
    if (![shape, data_offsets].every(counts)) throw broken(`its header does not say where ${name} is`);
    const [from, to] = data_offsets;
    if (start + to > blob.size)
      throw broken(`it has ${blob.size} bytes and should have ${start + to} or more`);
    const bytes = to - from;
    if (dtype in BYTES && bytes !== BYTES[dtype] * shape.reduce((product, side) => product * side, 1)) {
      throw broken(`${name} does not have as many bytes as its shape needs`);
    }
    const row = bytes / (shape[0] ?? 1);
    const read = (first = 0, rows = (shape[0] ?? 1) - first) =>
      blob.slice(start + from + first * row, start + from + (first + rows) * row).arrayBuffer();
    tensors[name] = { file, dtype, shape, bytes, read };
  }
  return { metadata: header.__metadata__ ?? {}, tensors };
}

function headerOf(bytes) {
  try {
    return jsonOf(bytes, "header");
  } catch {
    return null;
  }
}

// A tensor's numbers as a Float32Array.
export async function floatsOf(name, tensor) {
  checkFloats(name, tensor);
  return numbersOf(tensor.dtype, await tensor.read());
}

export function checkFloats(name, { file, dtype }) {
  if (dtype in BYTES) return;
  throw new LabError(
    `${file}: ${name} is of type ${dtype}. Expected floats (F16, BF16, F32): save it in one of these types.`,
  );
}

// Raw bytes of floats as a Float32Array.
export function numbersOf(dtype, bytes) {
  return READERS[dtype](bytes);
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
export function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
