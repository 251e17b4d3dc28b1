// Text to token ids and back: GPT-2's byte-pair encoding, as `lora_lib.tokenizer` has it through tiktoken.
// How GPT-2 cuts text into pieces before any merge: contractions, words, numbers, punctuation, spaces.
// \p{White_Space} is what Python calls \s; JavaScript's \s is another set of letters.
const PIECES =
  /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

export class Tokenizer {
  // `lines`: the text of a .tiktoken file, a token a line: its bytes in base64, a space, its rank.
  constructor(lines) {
    this.bytes = []; // of each token
    this.ranks = new Map(); // from a token's bytes, written as letters of code 0 to 255
    for (const line of lines.trim().split("\n")) {
      const letters = atob(line.split(" ")[0]);
      this.ranks.set(letters, this.bytes.length);
      this.bytes.push(Uint8Array.from(letters, letter => letter.charCodeAt(0)));
    }
    this.endOfText = this.bytes.length;
    this.known = new Map(); // pieces that were encoded before
  }

  encode(text) {
    const ids = [];
    for (const piece of text.match(PIECES) ?? []) {
      if (!this.known.has(piece)) this.known.set(piece, this.merge(piece));
      for (const id of this.known.get(piece)) ids.push(id);
    }
    return ids;
  }

  // One piece: its bytes, and again and again the two neighbours whose merge was learned first become one.
  merge(piece) {
    const parts = Array.from(new TextEncoder().encode(piece), byte => String.fromCharCode(byte));
    for (;;) {
      let lowest = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + parts[i + 1]) ?? Infinity;
        if (rank < lowest) [lowest, at] = [rank, i];
      }
      if (at < 0) return parts.map(part => this.ranks.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  // A letter outside ASCII may be several tokens: decode all of a text's tokens together.
  decode(ids) {
    const bytes = ids.flatMap(id => (id === this.endOfText ? [] : [...this.bytes[id]]));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }
}
