import { LabError } from "../errors.js";

const PAGE = 65536; // bytes
const MOST_PAGES = 32768; // 2 GB

// WebAssembly's memory, handed out in pieces of float32.
export class Memory {
  constructor() {
    try {
      this.wasm = new WebAssembly.Memory({ initial: 64, maximum: MOST_PAGES });
    } catch {
      throw new LabError("The browser gives the lab no memory: close other tabs, and load the page again.");
    }
    this.sizes = new Map(); // bytes of each piece in use, by where it begins
    this.holes = []; // [begin, bytes] of pieces given back, in order
    this.top = 0; // nothing beyond it was ever used
  }

  alloc(count) {
    const bytes = Math.ceil(count / 16) * 64; // each piece begins at a cache line
    let hole = this.holes.find(([, size]) => size >= bytes);
    if (!hole) {
      const missing = this.top + bytes - this.wasm.buffer.byteLength;
      if (missing > 0) this.grow(missing);
      hole = [this.top, bytes];
      this.top += bytes;
      this.holes.push(hole);
    }
    const [begin, size] = hole;
    if (size === bytes) this.holes.splice(this.holes.indexOf(hole), 1);
    else [hole[0], hole[1]] = [begin + bytes, size - bytes];
    this.sizes.set(begin, bytes);
    return begin;
  }

  grow(bytes) {
    try {
      this.wasm.grow(Math.ceil(bytes / PAGE));
    } catch {
      const now = this.wasm.buffer.byteLength;
      const [had, wanted] = [now, now + bytes].map(size => Math.round(size / 1e6));
      const limit =
        now + bytes > MOST_PAGES * PAGE ? "a page may use 2 GB at most" : "the browser refused more";
      throw new LabError(
        `This takes ${wanted} MB of memory, but ${limit} (it has ${had} MB now). ` +
          "Close other tabs, or choose a smaller rank or a smaller model.",
      );
    }
  }

  // What `work` returns. If it fails, all pieces that it was given are free again.
  allOrNone(work) {
    const before = new Set(this.sizes.keys());
    try {
      return work();
    } catch (error) {
      for (const begin of [...this.sizes.keys()].filter(piece => !before.has(piece))) this.free(begin);
      throw error;
    }
  }

  free(begin) {
    this.holes.push([begin, this.sizes.get(begin)]);
    this.sizes.delete(begin);
    this.holes.sort((a, b) => a[0] - b[0]);
    this.holes = this.holes.reduce((joined, [start, size]) => {
      const last = joined.at(-1);
      if (last && last[0] + last[1] === start) last[1] += size;
      else joined.push([start, size]);
      return joined;
    }, []);
  }

  // `count` numbers as an array; it is of no more use once the memory has grown.
  floats(begin, count) {
    return new Float32Array(this.wasm.buffer, begin, count);
  }

  ints(begin, count) {
    return new Int32Array(this.wasm.buffer, begin, count);
  }
}
