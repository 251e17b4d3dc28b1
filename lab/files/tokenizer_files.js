// A tokenizer from its files: GPT-2's vocab.json and merges.txt, or tokenizer.json, or the book's bpe.tiktoken.
import { LabError } from "../errors.js";
import { jsonOf } from "./json.js";
import { Tokenizer } from "./tokenizer.js";

const END_OF_TEXT = "<|endoftext|>";
const TOKENIZER = "tokenizer.json";

// `read(name)`: a promise of a file's text, or null where there is none. Throws LabError if the files are not those of
// a GPT-2's tokenizer, or have tokens that the model does not know.
export async function readTokenizer(read, config) {
  const parts = await fromAny(read);
  const end = config.endOfText ?? parts.endOfText;
  const largest = [...parts.tokens.values()].reduce((a, b) => Math.max(a, b), end ?? 0);
  if (largest >= config.V) {
    throw new LabError(
      `The tokenizer has tokens up to ${largest}, but the model knows only those below ${config.V} (vocab_size): ` +
        "do the files belong together?",
    );
  }
  return new Tokenizer({ ...parts, endOfText: end });
}

async function fromAny(read) {
  const [vocab, merges, whole, tiktoken] = await Promise.all(
    ["vocab.json", "merges.txt", "tokenizer.json", "bpe.tiktoken"].map(read),
  );
  if (vocab !== null && merges !== null) {
    return fromVocabulary(jsonOf(vocab, "vocab.json"), merges.split(/\r?\n/), "vocab.json");
  }
  if (whole !== null) return fromTokenizerJson(jsonOf(whole, "tokenizer.json"));
  if (tiktoken !== null) return fromTiktoken(tiktoken);
  throw new LabError("The tokenizer's files are missing: vocab.json and merges.txt, or tokenizer.json.");
}

// A token a line: its bytes in base64, a space, its rank, which is its id. Two tokens merge if the result is a token.
function fromTiktoken(text) {
  const tokens = new Map();
  for (const line of text.trim().split("\n")) tokens.set(atob(line.split(" ")[0]), tokens.size);
  const rankOf = (left, right) => tokens.get(left + right);
  return { tokens, rankOf, endOfText: tokens.size };
}

// `vocabulary`: {token: id}; `merges`: "left right" a line, in the order in which they were learned.
// `special`: those that stand for no letters. `allBytes`: each must have a token.
export function fromVocabulary(vocabulary, merges, file, special = [END_OF_TEXT], allBytes = true) {
  const tokens = new Map();
  for (const [written, id] of Object.entries(vocabulary)) {
    if (!Number.isInteger(id) || id < 0)
      throw new LabError(`${file}: the id of “${written}” is not a whole number.`);
    if (!special.includes(written)) tokens.set(bytesOf(written, file), id);
  }
  for (let byte = 0; byte < 256; byte++) {
    if (allBytes && !tokens.has(String.fromCharCode(byte))) {
      throw new LabError(
        `${file} has no token for the byte ${byte}: this is not GPT-2's byte-pair encoding.`,
      );
    }
  }
  const ranks = new Map();
  for (const merge of merges) {
    if (!merge.trim() || merge.startsWith("#version")) continue;
    const pair = merge.split(" ").map(part => bytesOf(part, file));
    if (pair.length !== 2 || !tokens.has(pair.join(""))) {
      throw new LabError(
        `The merge “${merge}” does not lead to a token: do the tokenizer's files belong together?`,
      );
    }
    ranks.set(`${pair[0].length} ${pair.join("")}`, ranks.size);
  }
  const rankOf = (left, right) => ranks.get(`${left.length} ${left}${right}`);
  return { tokens, rankOf, endOfText: vocabulary[END_OF_TEXT] ?? null };
}

function fromTokenizerJson(json) {
  const { vocabulary, merges, added } = bytePairs(json, "a GPT-2");
  const parts = fromVocabulary(vocabulary, merges, TOKENIZER);
  const end = added.find(({ content }) => content === END_OF_TEXT)?.id;
  return { ...parts, endOfText: parts.endOfText ?? end ?? null };
}

// The tokenizer of a chat model: its special tokens are cut out of a text, and digits may be pieces, as SmolLM2's are.
export function readChatTokenizer(json, { endOfText, V }) {
  const first = json.pre_tokenizer?.pretokenizers?.[0];
  const digits = first?.type === "Digits" && first.individual_digits === true;
  const cut = digits ? json.pre_tokenizer.pretokenizers[1] : json.pre_tokenizer;
  const { vocabulary, merges, added } = bytePairs({ ...json, pre_tokenizer: cut }, "SmolLM2");
  const special = Object.fromEntries(
    added.filter(one => one.special).map(({ content, id }) => [content, id]),
  );
  const parts = fromVocabulary(vocabulary, merges, TOKENIZER, Object.keys(special), false);
  if ([...parts.tokens.values(), ...Object.values(special)].some(id => id >= V)) {
    throw new LabError(`${TOKENIZER} has tokens beyond the model's ${V}: do the files belong together?`);
  }
  return new Tokenizer({ ...parts, special, digits, endOfText });
}

function bytePairs({ model, pre_tokenizer: cut, normalizer, added_tokens: added = [] }, whose) {
  const known =
    model?.type === "BPE" &&
    model.vocab &&
    Array.isArray(model.merges) &&
    cut?.type === "ByteLevel" &&
    !cut.add_prefix_space &&
    cut.use_regex !== false &&
    !normalizer;
  if (!known) throw new LabError(`${TOKENIZER} is not that of ${whose} (byte-level BPE).`);
  const merges = model.merges.map(merge => (Array.isArray(merge) ? merge.join(" ") : merge));
  return { vocabulary: model.vocab, merges, added };
}

// Each byte as the letter that GPT-2's files write for it: those that can be seen as they are, the others from 256 on.
const BYTE_OF = new Map();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const seen = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  BYTE_OF.set(String.fromCharCode(seen ? byte : next++), String.fromCharCode(byte));
}

function bytesOf(written, file) {
  const bytes = Array.from(written, letter => BYTE_OF.get(letter));
  if (bytes.includes(undefined)) {
    throw new LabError(`${file}: “${written}” is not written as GPT-2's tokenizer writes tokens.`);
  }
  return bytes.join("");
}
