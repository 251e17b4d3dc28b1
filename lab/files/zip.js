// Zip archives and downloads: how an adapter's two files leave the page and come back.
import { LabError } from "../errors.js";

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

// The checksum that a zip keeps of each of its files.
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

// Numbers in two or in four bytes each, the lowest byte first.
const inBytes =
  size =>
  (...numbers) =>
    numbers.flatMap(number => Array.from({ length: size }, (_, i) => (number >>> (8 * i)) & 255));
const two = inBytes(2);
const four = inBytes(4);

// The bytes of a zip with these files, {name: Uint8Array}, stored as they are: floats hardly shrink.
export function zip(files) {
  const parts = [];
  const directory = [];
  let at = 0;
  for (const [name, bytes] of Object.entries(files)) {
    const label = new TextEncoder().encode(name);
    const sizes = four(crc32(bytes), bytes.length, bytes.length); // checksum, packed, unpacked
    // version, flags, method, time and date (1 January 1980); then the length of the name, and of what follows it
    const about = [...two(20, 0, 0, 0, 33), ...sizes, ...two(label.length, 0)];
    parts.push(Uint8Array.from([...four(0x04034b50), ...about]), label, bytes);
    // the version once more; at the end the length of a comment, disk, two kinds of attributes, where the file begins
    const entry = [...four(0x02014b50), ...two(20), ...about, ...two(0, 0, 0), ...four(0, at)];
    directory.push(Uint8Array.from(entry), label);
    at += 30 + label.length + bytes.length;
  }
  const size = directory.reduce((total, part) => total + part.length, 0);
  const count = Object.keys(files).length;
  const end = Uint8Array.from([
    ...four(0x06054b50),
    ...two(0, 0, count, count),
    ...four(size, at),
    ...two(0),
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

const MOST_BYTES = 2 ** 29; // that one file of an adapter may have: 512 MB
const NOT_WHOLE = "This is not a whole zip file.";

// The files in a zip: [{path, read}], where `read()` is a promise of the unpacked bytes. Throws LabError for a file of
// another kind or one that is cut off; `read` does for one that is damaged, encrypted or too large.
function zipEntries(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new LabError(NOT_WHOLE);
  const entries = [];
  let at = view.getUint32(end + 16, true);
  for (let i = 0; i < view.getUint16(end + 10, true); i++) {
    if (at + 46 > end || view.getUint32(at, true) !== 0x02014b50) throw new LabError(NOT_WHOLE);
    const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
    const [crc, packed, size] = [16, 20, 24].map(offset => view.getUint32(at + offset, true));
    const [nameLength, extra, comment] = [28, 30, 32].map(offset => view.getUint16(at + offset, true));
    const begin = view.getUint32(at + 42, true);
    const path = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength));
    const about = { path, encrypted: flags & 1, method, crc, packed, size, begin };
    if (!path.endsWith("/")) entries.push({ path, read: () => unpacked(buffer, about) });
    at += 46 + nameLength + extra + comment;
  }
  return entries;
}

async function unpacked(buffer, { path, encrypted, method, crc, packed, size, begin }) {
  checkSize(path, size);
  if (encrypted || (method !== 0 && method !== 8)) {
    throw new LabError(
      "This zip is encrypted, or packed in an unusual way: unpack it, and choose the two files.",
    );
  }
  if (begin + 30 > buffer.byteLength) throw new LabError(NOT_WHOLE);
  const view = new DataView(buffer);
  const start = begin + 30 + view.getUint16(begin + 26, true) + view.getUint16(begin + 28, true);
  if (start + packed > buffer.byteLength) throw new LabError(NOT_WHOLE);
  const damaged = new LabError(`${path} in the zip is damaged: pack or download it again.`);
  const stream = new Blob([buffer.slice(start, start + packed)]).stream();
  const bytes = await collected(
    method ? stream.pipeThrough(new DecompressionStream("deflate-raw")) : stream,
    size,
    damaged,
  );
  if (crc32(bytes) !== crc) throw damaged;
  return bytes.buffer;
}

// Exactly `size` bytes of a stream, which must not have more or fewer: a zip may promise less than it unpacks to.
async function collected(stream, size, damaged) {
  const bytes = new Uint8Array(size);
  const reader = stream.getReader();
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw damaged;
    });
    if (done) break;
    if (at + value.length > size) {
      reader.cancel().catch(() => {}); // the rest is not needed
      throw damaged;
    }
    bytes.set(value, at);
    at += value.length;
  }
  if (at < size) throw damaged;
  return bytes;
}

function checkSize(path, size) {
  if (size <= MOST_BYTES) return;
  const [found, most] = [size, MOST_BYTES].map(bytes => Math.round(bytes / 2 ** 20).toLocaleString("en"));
  throw new LabError(`${path} has ${found} MB, and an adapter's file has ${most} MB at most.`);
}

// ---- An adapter's two files among those that a reader chose --------------------------------------------------------

const PARTS = [
  { name: "adapter_config.json", numbered: /^adapter_config.*\.json$/i, any: /\.json$/i },
  { name: "adapter_model.safetensors", numbered: /^adapter_model.*\.safetensors$/i, any: /\.safetensors$/i },
];

// {"adapter_config.json": ArrayBuffer, "adapter_model.safetensors": ArrayBuffer} of chosen files, a chosen folder, or a
// zip of either. The folder nearest to the top that has both files counts, so that a run's checkpoints do not.
// Throws LabError if a file is missing, or if there are several adapters to choose from.
export async function adapterFilesIn(chosen) {
  const entries = [];
  for (const file of chosen) {
    const path = file.webkitRelativePath || file.name;
    if (/\.zip$/i.test(path)) {
      checkSize(path, file.size);
      entries.push(...zipEntries(await file.arrayBuffer()));
    } else entries.push({ path, read: () => sized(file) });
  }
  const found = nearestAdapter(entries);
  return Object.fromEntries(await Promise.all(found.map(async ([name, { read }]) => [name, await read()])));
}

function sized(file) {
  checkSize(file.name, file.size);
  return file.arrayBuffer();
}

// [[name, entry], [name, entry]]
function nearestAdapter(entries) {
  const folders = new Map();
  for (const entry of entries) {
    const folder = entry.path.split("/").slice(0, -1).join("/");
    folders.set(folder, [...(folders.get(folder) ?? []), entry]);
  }
  const whole = [];
  let missing = PARTS[0].name;
  for (const [folder, inside] of folders) {
    const parts = PARTS.map(part => [part.name, partIn(inside, part)]);
    const lacking = parts.find(([, entry]) => !entry);
    if (lacking) [missing] = lacking;
    else whole.push({ folder, parts, depth: folder ? folder.split("/").length : 0 });
  }
  if (!whole.length) {
    throw new LabError(
      `${missing} is missing: choose both of an adapter's files, their folder, or a zip of them.`,
    );
  }
  const depth = Math.min(...whole.map(adapter => adapter.depth));
  const nearest = whole.filter(adapter => adapter.depth === depth);
  if (nearest.length > 1) {
    const names = nearest.map(({ folder }) => folder).join(" and ");
    throw new LabError(`There are several adapters, ${names}: choose one of them.`);
  }
  return nearest[0].parts;
}

// The file of a folder that is meant: by its name, by the name that a browser gives a second download, or the only one
// of its kind.
function partIn(inside, { name, numbered, any }) {
  const nameOf = ({ path }) => path.split("/").at(-1);
  for (const fits of [own => own === name, own => numbered.test(own), own => any.test(own)]) {
    const found = inside.filter(entry => fits(nameOf(entry)));
    if (found.length > 1) {
      throw new LabError(
        `${found.map(nameOf).join(" and ")}: which of them is meant? Choose one adapter's files.`,
      );
    }
    if (found.length) return found[0];
  }
  return undefined;
}
