// Zip archives and downloads: how an adapter's two files leave the page and come back.
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

// The files in a zip, {name: ArrayBuffer}, without the folders that they were in.
export async function unzip(buffer) {
  const broken = () => new Error("This is not a whole zip file.");
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw broken();
  const files = {};
  let at = view.getUint32(end + 16, true);
  for (let i = 0; i < view.getUint16(end + 10, true); i++) {
    if (at + 46 > end || view.getUint32(at, true) !== 0x02014b50) throw broken();
    const method = view.getUint16(at + 10, true);
    const size = view.getUint32(at + 20, true);
    const [nameLength, extra, comment] = [28, 30, 32].map(offset => view.getUint16(at + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength));
    const begin = view.getUint32(at + 42, true);
    const start = begin + 30 + view.getUint16(begin + 26, true) + view.getUint16(begin + 28, true);
    if (start + size > buffer.byteLength) throw broken();
    files[name.split("/").pop()] = await unpacked(buffer.slice(start, start + size), method);
    at += 46 + nameLength + extra + comment;
  }
  return files;
}

// Method 0 is stored, 8 is deflated; there is hardly any other.
async function unpacked(bytes, method) {
  if (method === 0) return bytes;
  if (method !== 8)
    throw new Error("This zip is packed in an unusual way: unpack it, and choose the two files.");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
}

// Hand a file to the reader, as a download.
export function save(name, data) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(data instanceof Blob ? data : new Blob([data]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
