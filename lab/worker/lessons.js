// What a run learns from: {draw(count, random), heldOut, prose, window}. `draw` gives the rows of a step and, for each token,
// the one that follows it; `heldOut` and `prose` are such rows that are never trained on; `window` is their longest.
import { LabError } from "../errors.js";

const WINDOW = 64; // tokens of one row
const HELD_OUT = 0.1; // of the text, its end: never trained on
const MOST_ROWS = 4; // that a loss beside the training is measured on
const FEWEST_TOKENS = 40; // that a text must have
const LONGEST_PAIR = 256; // tokens: a step takes memory for the longest
const IGNORED = -100; // as a target, it does not count

// Windows of a text, each from a place that chance decides.
export class TextLesson {
  constructor(tokenizer, { text }, prose, context) {
    const ids = tokenizer.encode(text);
    if (ids.length < FEWEST_TOKENS) {
      throw new LabError(
        `The text has ${ids.length} tokens. At least ${FEWEST_TOKENS} are needed: paste some more.`,
      );
    }
    const heldOut = Math.max(8, Math.round(HELD_OUT * ids.length));
    this.ids = ids.slice(0, ids.length - heldOut);
    const most = Math.min(WINDOW, context);
    this.window = Math.min(most, this.ids.length - 1);
    this.heldOut = windows(ids.slice(ids.length - heldOut), most);
    this.prose = windows(tokenizer.encode(prose), most);
  }

  draw(count, random) {
    const { ids, window } = this;
    const starts = Array.from({ length: count }, () => Math.floor(random() * (ids.length - window)));
    const cut = shift => starts.map(at => ids.slice(at + shift, at + shift + window));
    return [cut(0), cut(1)];
  }
}

// Tokens cut into rows, one after the other, a few at most: [rows, targets].
function windows(ids, most) {
  const T = Math.min(most, ids.length - 1);
  const count = Math.min(MOST_ROWS, Math.floor((ids.length - 1) / T));
  const cut = shift => Array.from({ length: count }, (_, i) => ids.slice(i * T + shift, (i + 1) * T + shift));
  return [cut(0), cut(1)];
}

// Questions, as the model reads them, and their answers: only the tokens of an answer count. `settings`: {pairs, heldOut,
// known}, lists of {prompt, answer}.
export class PairLesson {
  constructor(tokenizer, { pairs, heldOut, known }, context) {
    const most = Math.min(LONGEST_PAIR, context);
    const all = list => list.map(pair => rowOf(pair, tokenizer, most));
    this.rows = all(pairs);
    this.padding = tokenizer.endOfText;
    this.left = []; // of the rows, until each was drawn
    this.heldOut = this.batch(all(heldOut).slice(0, MOST_ROWS));
    this.prose = this.batch(all(known).slice(0, MOST_ROWS));
    this.window = Math.max(...this.rows.map(({ ids }) => ids.length));
  }

  draw(count, random) {
    const chosen = Array.from({ length: count }, () => {
      if (!this.left.length) this.left = [...this.rows];
      return this.left.splice(Math.floor(random() * this.left.length), 1)[0];
    });
    return this.batch(chosen);
  }

  // Rows of one length: the shorter ones are filled up with tokens that do not count.
  batch(rows) {
    const longest = Math.max(...rows.map(({ ids }) => ids.length));
    const filled = (list, what) => [...list, ...Array(longest - list.length).fill(what)];
    return [
      rows.map(({ ids }) => filled(ids, this.padding)),
      rows.map(({ targets }) => filled(targets, IGNORED)),
    ];
  }
}

// {ids, targets} of one pair: all tokens but the last, and of each the one that follows, if it belongs to the answer.
function rowOf({ prompt, answer }, tokenizer, most) {
  const asked = tokenizer.encode(prompt);
  const all = [...asked, ...tokenizer.encode(answer), tokenizer.endOfText];
  if (all.length > most + 1) {
    throw new LabError(
      `The pair that ends in “${answer.slice(-40)}” has ${all.length} tokens, and at most ${most + 1} fit: shorten it.`,
    );
  }
  const ids = all.slice(0, -1);
  return { ids, targets: ids.map((_, i) => (i + 1 < asked.length ? IGNORED : all[i + 1])) };
}
