// Text to token ids and back: GPT-2's byte-pair encoding, as `lora_lib.tokenizer` has it through tiktoken.

// How GPT-2 cuts text into pieces before any merge: contractions, words, numbers, punctuation, spaces.
// \p{White_Space} is what Python calls \s; JavaScript's \s is another set of letters.
const PIECES =
  /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const LONGEST_KEPT = 40; // letters of a piece whose tokens are kept for the next time
const MOST_KEPT = 100_000; // pieces

export class Tokenizer {
  // `tokens`: {bytes: id}, bytes written as letters of code 0 to 255. `rankOf(left, right)`: how early the merge of
  // two tokens was learned, undefined if it was not. `special`: {name: id} of tokens that stand for no letters; they are
  // cut out of a text first. `digits`: each digit is a piece. See tokenizer_files.js and gguf.js.
  constructor({ tokens, rankOf, endOfText, special = {}, digits = false }) {
    Object.assign(this, { tokens, rankOf, endOfText, special, digits });
    const names = Object.keys(special).map(name => name.replace(/[|<>]/g, "\\$&"));
    this.specials = names.length ? new RegExp(`(${names.join("|")})`) : null;
    this.bytes = []; // of each token
    for (const [letters, id] of tokens) {
      this.bytes[id] = Uint8Array.from(letters, letter => letter.charCodeAt(0));
    }
    this.kept = new Map(); // the tokens of pieces that were encoded before
  }

  encode(text) {
    const ids = [];
    for (const part of this.specials ? text.split(this.specials) : [text]) {
      if (Object.hasOwn(this.special, part)) ids.push(this.special[part]);
      else this.encodePlain(part, ids);
    }
    return ids;
  }

  encodePlain(text, ids) {
    for (const part of this.digits ? text.split(/(\p{N})/u) : [text]) {
      for (const piece of part.match(PIECES) ?? []) {
        for (const id of this.kept.get(piece) ?? this.merge(piece)) ids.push(id);
      }
    }
  }

  // One piece: its bytes, and again and again the two neighbours whose merge was learned first become one, of equal
  // ones the left. A queue knows which are next, so that a piece of n bytes takes n·log n steps.
  merge(piece) {
    const bytes = Array.from(new TextEncoder().encode(piece), byte => String.fromCharCode(byte));
    const parts = bytes.filter(byte => this.tokens.has(byte)); // SmolLM2 has no tokens for some, and reads on
    const after = parts.map((_, i) => i + 1); // the part that follows, where the parts between were merged away
    const before = parts.map((_, i) => i - 1);
    const queue = new Queue();
    const offer = i => {
      const rank = after[i] < parts.length ? this.rankOf(parts[i], parts[after[i]]) : undefined;
      if (rank !== undefined) queue.add({ rank, at: i, left: parts[i], right: parts[after[i]] });
    };
    for (let i = 0; i < parts.length; i++) offer(i);
    for (let next = queue.take(); next; next = queue.take()) {
      const { at, left, right } = next;
      if (parts[at] !== left || parts[after[at]] !== right) continue; // one of the two was merged meanwhile
      const gone = after[at];
      parts[at] = left + right;
      parts[gone] = null;
      after[at] = after[gone];
      if (after[at] < parts.length) before[after[at]] = at;
      if (before[at] >= 0) offer(before[at]);
      offer(at);
    }
    const ids = parts.filter(part => part !== null).map(part => this.tokens.get(part));
    this.keep(piece, ids);
    return ids;
  }

  keep(piece, ids) {
    if (piece.length > LONGEST_KEPT) return;
    if (this.kept.size >= MOST_KEPT) this.kept.clear();
    this.kept.set(piece, ids);
  }

  // A letter outside ASCII may be several tokens: decode all of a text's tokens together.
  decode(ids) {
    const bytes = ids.flatMap(id => (id === this.endOfText ? [] : [...(this.bytes[id] ?? [])]));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }
}

// A heap: `take` gives the entry of the lowest rank, of equal ranks the leftmost.
class Queue {
  constructor() {
    this.heap = [];
  }

  before(i, j) {
    const [a, b] = [this.heap[i], this.heap[j]];
    return a.rank < b.rank || (a.rank === b.rank && a.at < b.at);
  }

  swap(i, j) {
    [this.heap[i], this.heap[j]] = [this.heap[j], this.heap[i]];
  }

  add(entry) {
    let i = this.heap.push(entry) - 1;
    for (let parent = (i - 1) >> 1; i > 0 && this.before(i, parent); parent = (i - 1) >> 1) {
      this.swap(i, parent);
      i = parent;
    }
  }

  take() {
    const { heap } = this;
    const first = heap[0];
    const last = heap.pop();
    if (heap.length === 0) return first;
    heap[0] = last;
    for (let i = 0; ; ) {
      let least = i;
      for (const child of [2 * i + 1, 2 * i + 2]) {
        if (child < heap.length && this.before(child, least)) least = child;
      }
      if (least === i) return first;
      this.swap(i, least);
      i = least;
    }
  }
}
