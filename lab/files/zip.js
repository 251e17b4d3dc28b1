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

const NOT_WHOLE = "This is not a whole zip file.";
const MOST_DIRECTORY = 2 ** 22; // bytes: some 40,000 files

// The files in a zip, a Blob: [{path, read}], where `read(most)` is a promise of the unpacked bytes, `most` of them at
// most. Only the list of files is read at once. Throws LabError for a file of another kind or one that is cut off; `read`
// does for one that is damaged, encrypted or too large.
async function zipEntries(blob) {
  const tail = new DataView(await blob.slice(-65_557).arrayBuffer()); // the end, and a comment after it
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new LabError(NOT_WHOLE);
  const [count, length, first] = [
    tail.getUint16(end + 10, true),
    tail.getUint32(end + 12, true),
    tail.getUint32(end + 16, true),
  ];
  if (length > MOST_DIRECTORY)
    throw new LabError("This zip has too many files: unpack it, and choose the two files.");
  const view = new DataView(await blob.slice(first, first + length).arrayBuffer());
  const entries = [];
  for (let i = 0, at = 0; i < count; i++) {
    if (at + 46 > view.byteLength || view.getUint32(at, true) !== 0x02014b50) throw new LabError(NOT_WHOLE);
    const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
    const [crc, packed, size] = [16, 20, 24].map(offset => view.getUint32(at + offset, true));
    const [nameLength, extra, comment] = [28, 30, 32].map(offset => view.getUint16(at + offset, true));
    if (at + 46 + nameLength > view.byteLength) throw new LabError(NOT_WHOLE);
    const path = new TextDecoder().decode(new Uint8Array(view.buffer, at + 46, nameLength));
    const about = {
      path,
      encrypted: flags & 1,
      method,
      crc,
      packed,
      size,
      begin: view.getUint32(at + 42, true),
    };
    if (!path.endsWith("/")) entries.push({ path, read: most => unpacked(blob, about, most) });
    at += 46 + nameLength + extra + comment;
  }
  return entries;
}

async function unpacked(blob, { path, encrypted, method, crc, packed, size, begin }, most) {
  checkSize(path, Math.max(size, method ? 0 : packed), most);
  if (encrypted || (method !== 0 && method !== 8)) {
    throw new LabError(
      "This zip is encrypted, or packed in an unusual way: unpack it, and choose the two files.",
    );
  }
  if (begin + 30 > blob.size) throw new LabError(NOT_WHOLE);
  const head = new DataView(await blob.slice(begin, begin + 30).arrayBuffer());
  const start = begin + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  if (start + packed > blob.size) throw new LabError(NOT_WHOLE);
  const damaged = new LabError(`${path} in the zip is damaged: pack or download it again.`);
  const stream = blob.slice(start, start + packed).stream();
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

function checkSize(path, size, most) {
  if (size <= most) return;
  const megabytes = bytes => `${Number((bytes / 1e6).toPrecision(2)).toLocaleString("en")} MB`;
  throw new LabError(
    `${path} has ${megabytes(size)}, but for this model it can have ${megabytes(most)} at most: is it another file?`,
  );
}

// ---- An adapter's two files among those that a reader chose --------------------------------------------------------

const PARTS = [
  { name: "adapter_config.json", numbered: /^adapter_config.*\.json$/i, any: /\.json$/i },
  { name: "adapter_model.safetensors", numbered: /^adapter_model.*\.safetensors$/i, any: /\.safetensors$/i },
];

const MOST_CONFIG = 2 ** 20; // bytes

// {"adapter_config.json": ArrayBuffer, "adapter_model.safetensors": ArrayBuffer} of chosen files, a chosen folder, or a
// zip of either. The folder nearest to the top that has both files counts, so that a run's checkpoints do not. `most`: the
// bytes of the model's largest adapter.
// Throws LabError if a file is missing or too large, or if there are several adapters to choose from.
export async function adapterFilesIn(chosen, most) {
  const entries = [];
  for (const file of chosen) {
    const path = file.webkitRelativePath || file.name;
    if (/\.zip$/i.test(path)) entries.push(...(await zipEntries(file)));
    else entries.push({ path, read: limit => sized(file, limit) });
  }
  const files = {};
  for (const [name, entry] of nearestAdapter(entries)) {
    files[name] = await entry.read(name === PARTS[0].name ? MOST_CONFIG : most);
  }
  return files;
}

function sized(file, most) {
  checkSize(file.name, file.size, most);
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
