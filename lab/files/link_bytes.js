// A link that carries an adapter: its two files as letters, in 8 bits a number, with the texts that it wrote.
//
// The letters are base64url of: a version (1 byte), the length of all bytes (4), a checksum of what follows (4), the
// length of the header (2), the header (JSON, deflated), and of each tensor its scales and its numbers.

import { LabError } from "../errors.js";
import { floatsOf, openSafetensors, writeSafetensors } from "./safetensors.js";
import { crc32 } from "./zip.js";

const VERSION = 1;
const BEFORE_HEADER = 11; // bytes
const MOST_HEADER = 65_536; // bytes of JSON: a hostile link must not unpack without end
const MOST_RANK = 2; // of an adapter that travels in a link
const MOST_LETTERS = 120_000; // of a link: programs cut longer ones
const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";

// The letters for an adapter's files, {name: bytes}, and `about`: anything that JSON can say, shown to the receiver.
// Throws LabError where it is too large for a link.
export async function toLink(files, about) {
  const config = JSON.parse(new TextDecoder().decode(files[CONFIG]));
  if (config.r > MOST_RANK) {
    throw new LabError(
      `A link carries an adapter of rank 1 or ${MOST_RANK}, but this one has rank ${config.r}: ` +
        `turn Rank down to ${MOST_RANK}, or send the file (“Download the adapter” below).`,
    );
  }
  const { metadata, tensors } = await openSafetensors(new Blob([files[WEIGHTS]]), WEIGHTS);
  const shapes = Object.entries(tensors).map(([name, { shape }]) => [name, shape]);
  const header = await deflated(JSON.stringify({ config, metadata, shapes, about }));
  const numbers = [];
  for (const [name, tensor] of Object.entries(tensors)) {
    numbers.push(inEightBits(await floatsOf(name, tensor), tensor.shape, config.r));
  }
  const body = joined([two(header.length), header, ...numbers]);
  const front = new Uint8Array(BEFORE_HEADER - 2);
  const view = new DataView(front.buffer);
  view.setUint8(0, VERSION);
  view.setUint32(1, front.length + body.length);
  view.setUint32(5, crc32(body));
  const letters = toLetters(joined([front, body]));
  if (letters.length > MOST_LETTERS) {
    throw new LabError(
      `The link would have ${letters.length.toLocaleString("en")} letters, and many programs cut it at ` +
        `${MOST_LETTERS.toLocaleString("en")}: send the file instead (“Download the adapter” below).`,
    );
  }
  return letters;
}

// {files: {name: ArrayBuffer}, config, about} of such letters. Throws LabError, which says what is broken.
export async function fromLink(letters) {
  const bytes = fromLetters(letters);
  const view = new DataView(bytes.buffer);
  if (bytes.length && view.getUint8(0) !== VERSION) {
    throw new LabError("This page does not know this kind of link: it was damaged, or a newer lab made it.");
  }
  const whole = bytes.length < BEFORE_HEADER ? Infinity : view.getUint32(1);
  if (bytes.length < whole) {
    const missing =
      whole === Infinity ? "nearly all" : `${(whole - bytes.length).toLocaleString("en")} bytes`;
    throw new LabError(
      `The link is cut off: ${missing} of the adapter did not arrive. Ask for it as a file.`,
    );
  }
  if (bytes.length > whole)
    throw new LabError(`The link has ${bytes.length - whole} bytes too many at its end: copy it again.`);
  if (crc32(bytes.subarray(9)) !== view.getUint32(5))
    throw new LabError(
      "Some letters of the link were changed on the way (its checksum differs): copy it again.",
    );
  const begin = BEFORE_HEADER + view.getUint16(9);
  const { config, metadata, shapes, about } = await readHeader(bytes.slice(BEFORE_HEADER, begin));
  const tensors = readTensors(bytes.slice(begin), shapes, config.r);
  const files = {
    [CONFIG]: new TextEncoder().encode(JSON.stringify(config)).buffer,
    [WEIGHTS]: writeSafetensors(tensors, metadata).buffer,
  };
  return { files, config, about };
}

async function readHeader(packed) {
  let header;
  try {
    header = JSON.parse(await inflated(packed));
  } catch {
    throw new LabError("The link's description of the adapter cannot be read.");
  }
  const { config, metadata, shapes, about } = header ?? {};
  const sound =
    [1, MOST_RANK].includes(config?.r) &&
    Array.isArray(config.target_modules) &&
    config.target_modules.every(name => typeof name === "string") &&
    Array.isArray(shapes) &&
    shapes.every(
      entry => Array.isArray(entry) && typeof entry[0] === "string" && isMatrix(entry[1], config.r),
    );
  if (!sound) throw new LabError(`The link does not describe an adapter of rank 1 or ${MOST_RANK}.`);
  return { config, metadata: metadata ?? {}, shapes, about: about ?? {} };
}

// A is (r, d), B is (k, r).
function isMatrix(shape, r) {
  return (
    Array.isArray(shape) &&
    shape.length === 2 &&
    shape.every(side => Number.isInteger(side) && side > 0) &&
    shape.includes(r)
  );
}

function readTensors(bytes, shapes, r) {
  const tensors = {};
  let at = 0;
  for (const [name, shape] of shapes) {
    const end = at + 4 * r + shape[0] * shape[1];
    if (end > bytes.length)
      throw new LabError(`The link describes more numbers than it contains: ${name} is incomplete.`);
    tensors[name] = { shape, data: fromEightBits(bytes.slice(at, end), shape, r) };
    at = end;
  }
  if (at < bytes.length) throw new LabError("The link contains more numbers than it describes.");
  return tensors;
}

// ---- Eight bits a number -----------------------------------------------------------------------------------------
// Each of the r directions has a scale in each tensor: its largest number becomes 127.

// The direction to which number `i` of a tensor belongs: A (r, d) has a row for each, B (k, r) a column.
function directionOf(shape, r) {
  return shape[0] === r ? i => Math.floor(i / shape[1]) : i => i % r;
}

function inEightBits(data, shape, r) {
  const direction = directionOf(shape, r);
  const most = new Float32Array(r);
  for (let i = 0; i < data.length; i++) most[direction(i)] = Math.max(most[direction(i)], Math.abs(data[i]));
  const scales = most.map(size => size / 127);
  const small = Int8Array.from(data, (number, i) => {
    const scale = scales[direction(i)];
    return scale ? Math.round(number / scale) : 0;
  });
  return joined([new Uint8Array(scales.buffer), new Uint8Array(small.buffer)]);
}

function fromEightBits(bytes, shape, r) {
  const direction = directionOf(shape, r);
  const scales = new Float32Array(bytes.buffer, 0, r);
  return Float32Array.from(new Int8Array(bytes.buffer, 4 * r), (small, i) => small * scales[direction(i)]);
}

// ---- Bytes and letters -------------------------------------------------------------------------------------------

function two(number) {
  return Uint8Array.from([number >> 8, number & 255]);
}

function joined(parts) {
  const all = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function toLetters(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192)
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromLetters(letters) {
  const strange = /[^A-Za-z0-9_-]/.exec(letters);
  if (strange) {
    const [letter] = letters.slice(strange.index); // a whole one, also of two halves
    throw new LabError(
      `The link has “${letter}” at letter ${strange.index + 1} of its adapter: copy it again.`,
    );
  }
  if (letters.length > 2 * MOST_LETTERS) {
    throw new LabError(
      `The link has ${letters.length.toLocaleString("en")} letters: no adapter of this page is so large.`,
    );
  }
  // One letter alone holds no byte: what is left over of a link that was cut.
  const text = atob(
    letters
      .slice(0, letters.length % 4 === 1 ? -1 : undefined)
      .replaceAll("-", "+")
      .replaceAll("_", "/"),
  );
  return Uint8Array.from(text, letter => letter.charCodeAt(0));
}

async function deflated(text) {
  const packed = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(packed).arrayBuffer());
  if (bytes.length > 65_535) throw new LabError("The texts beside the adapter are too long for a link.");
  return bytes;
}

async function inflated(bytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [];
  let size = 0;
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    size += read.value.length;
    if (size > MOST_HEADER) throw new LabError("too long");
    parts.push(read.value);
  }
  return new TextDecoder("utf-8", { fatal: true }).decode(joined(parts));
}
