import { LabError } from "./errors.js";

// WebAssembly's memory, handed out in pieces of float32.
export class Memory {
  constructor() {
    this.wasm = new WebAssembly.Memory({ initial: 64, maximum: 32768 }); // pages of 64 kB: up to 2 GB
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
      this.wasm.grow(Math.ceil(bytes / 65536));
    } catch {
      const megabytes = Math.round((this.wasm.buffer.byteLength + bytes) / 1e6);
      throw new LabError(
        `This takes ${megabytes} MB of memory, more than the browser gives to the lab (2 GB at most).`,
      );
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
