// The GGUF format, as llama.cpp has it: one file with a model's sizes, its tokenizer, its chat template and its weights.
// Read is a Llama with these kinds of numbers; a block of 4 or 8 bits has a scale d, and some a minimum m.
//
// 4 bytes "GGUF", the version, the counts of tensors and of fields; each field: its name, its type, its value; each tensor:
// its name, its sides (the shortest step first), its type, where it begins; then, aligned, the numbers.
import { LabError } from "../errors.js";
import { LLAMA_KINDS } from "../model/layers.js";
import { checkTemplate, INSTEAD, llamaConfig, llamaShapes } from "./llama_files.js";
import { halfToFloat } from "./safetensors.js";
import { Tokenizer } from "./tokenizer.js";
import { fromVocabulary } from "./tokenizer_files.js";

const LONGEST_HEADER = 64e6; // bytes
const SPECIAL = 3; // the type of a token that stands for no letters

// ---- Kinds of numbers ----------------------------------------------------------------------------------------------

const half = (view, at) => halfToFloat(view.getUint16(at, true));

// {bytes, numbers} of a block, and how one is written out at `to` of `out`.
const TYPES = {
  0: { name: "F32", bytes: 4, numbers: 1, read: readF32 },
  1: { name: "F16", bytes: 2, numbers: 1, read: readF16 },
  2: { name: "Q4_0", bytes: 18, numbers: 32, read: (view, at, out, to) => nibbles(view, at, 2, out, to, -8) },
  3: { name: "Q4_1", bytes: 20, numbers: 32, read: (view, at, out, to) => nibbles(view, at, 4, out, to, 0) },
  8: { name: "Q8_0", bytes: 34, numbers: 32, read: readQ8 },
  30: { name: "BF16", bytes: 2, numbers: 1, read: readBF16 },
};

// d·(q + less), and + m where there is one: the lower halves of 16 bytes are the first 16 codes q, the upper ones the rest.
function nibbles(view, at, codes, out, to, less) {
  const d = half(view, at);
  const m = codes === 4 ? half(view, at + 2) : 0;
  for (let i = 0; i < 16; i++) {
    const both = view.getUint8(at + codes + i);
    out[to + i] = d * ((both & 15) + less) + m;
    out[to + 16 + i] = d * ((both >> 4) + less) + m;
  }
}

function readF32(view, at, out, to) {
  out[to] = view.getFloat32(at, true);
}

function readF16(view, at, out, to) {
  out[to] = half(view, at);
}

// The upper half of a float32.
function readBF16(view, at, out, to) {
  new DataView(out.buffer).setUint16(4 * to + 2, view.getUint16(at, true), true);
}

function readQ8(view, at, out, to) {
  const d = half(view, at);
  for (let i = 0; i < 32; i++) out[to + i] = d * view.getInt8(at + 2 + i);
}

// ---- The header ----------------------------------------------------------------------------------------------------

// Readers of a field's value, by the type that the file says.
const VALUES = {
  0: header => header.number("getUint8", 1),
  1: header => header.number("getInt8", 1),
  2: header => header.number("getUint16", 2),
  3: header => header.number("getInt16", 2),
  4: header => header.number("getUint32", 4),
  5: header => header.number("getInt32", 4),
  6: header => header.number("getFloat32", 4),
  7: header => header.number("getUint8", 1) !== 0,
  8: header => header.text(),
  9: header => header.list(),
  10: header => header.count(),
  11: header => header.count(),
  12: header => header.number("getFloat64", 8),
};

class Header {
  constructor(bytes) {
    this.view = new DataView(bytes);
    this.at = 0;
  }

  number(kind, bytes) {
    const value = this.view[kind](this.at, true);
    this.at += bytes;
    return value;
  }

  count() {
    return Number(this.number("getBigUint64", 8));
  }

  text() {
    const length = this.count();
    const bytes = new Uint8Array(this.view.buffer, this.at, length);
    this.at += length;
    return new TextDecoder().decode(bytes);
  }

  value(type) {
    if (!VALUES[type]) throw new LabError(`a field has the type ${type}, which the lab does not know`);
    return VALUES[type](this);
  }

  list() {
    const type = this.number("getUint32", 4);
    const length = this.count();
    if (length > this.view.byteLength) throw new RangeError();
    return Array.from({ length }, () => this.value(type));
  }

  // {fields, tensors: {name: {sides, type, offset}}}, and where the numbers begin.
  all() {
    this.at = 4;
    const version = this.number("getUint32", 4);
    if (version !== 2 && version !== 3)
      throw new LabError(`its version is ${version}, and the lab reads 2 and 3`);
    const [tensorCount, fieldCount] = [this.count(), this.count()];
    const fields = Object.create(null);
    for (let i = 0; i < fieldCount; i++) fields[this.text()] = this.value(this.number("getUint32", 4));
    const tensors = Object.create(null);
    for (let i = 0; i < tensorCount; i++) {
      const name = this.text();
      const sides = Array.from({ length: this.number("getUint32", 4) }, () => this.count());
      tensors[name] = { sides, type: this.number("getUint32", 4), offset: this.count() };
    }
    const step = fields["general.alignment"] ?? 32;
    return { fields, tensors, begin: step * Math.ceil(this.at / step) };
  }
}

async function headerOf(blob, file) {
  const bytes = await blob.slice(0, Math.min(blob.size, LONGEST_HEADER)).arrayBuffer();
  const letters = new TextDecoder("latin1").decode(bytes.slice(0, 4));
  if (letters !== "GGUF") {
    throw new LabError(`${file} is not a GGUF file: it does not begin with “GGUF”. Instead, ${INSTEAD}.`);
  }
  try {
    return new Header(bytes).all();
  } catch (error) {
    const why = error instanceof LabError ? error.message : "its header is cut off: download it again";
    throw new LabError(`${file} cannot be read: ${why}.`);
  }
}

// ---- A Llama -------------------------------------------------------------------------------------------------------

// What GGUF calls the parts of a Llama.
const IN_GGUF = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  input_layernorm: "attn_norm",
  post_attention_layernorm: "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
};

function nameInFile(name) {
  const [, l, part] = name.match(/^model\.layers\.(\d+)\.(.*)\.weight$/) ?? [];
  return l ? `blk.${l}.${IN_GGUF[part]}.weight` : IN_GGUF[name];
}

// A chat model in one file, as `openModel` gives a GPT-2: {config, tokenizer, tensors}.
// Throws LabError, which says what was expected, for a model that the lab cannot compute or a chat that it cannot write.
export async function openGguf(blob) {
  const file = blob.name ?? "The GGUF file";
  const opened = { blob, file, ...(await headerOf(blob, file)) };
  const config = readConfig(opened);
  const tokenizer = readTokenizer(opened, config);
  checkTemplate(opened.fields["tokenizer.chat_template"], file);
  const tensors = {};
  for (const [name, shape] of Object.entries(llamaShapes(config))) {
    tensors[name] = tensorIn(opened, name, shape, config);
  }
  return { config, tokenizer, tensors };
}

function readConfig({ file, fields, tensors }) {
  const architecture = fields["general.architecture"];
  if (architecture !== "llama") {
    throw new LabError(
      `${file} has a model of the kind “${architecture}”. The lab reads “llama” in GGUF: ${INSTEAD}.`,
    );
  }
  const size = (field, otherwise) => {
    const value = fields[`llama.${field}`] ?? otherwise;
    if (Number.isInteger(value) && value > 0) return value;
    throw new LabError(`${file} does not say llama.${field}, a whole number above 0: ${INSTEAD}.`);
  };
  const [C, H] = [size("embedding_length"), size("attention.head_count")];
  checkFields(file, fields, tensors);
  return llamaConfig({
    C,
    H,
    K: size("attention.head_count_kv", H),
    D: size("attention.key_length", C / H),
    V: tensors["token_embd.weight"]?.sides[1] ?? 0,
    depth: size("block_count"),
    context: size("context_length"),
    inner: size("feed_forward_length"),
    epsilon: fields["llama.attention.layer_norm_rms_epsilon"],
    theta: fields["llama.rope.freq_base"] ?? 10000,
    endOfText: fields["tokenizer.ggml.eos_token_id"] ?? null,
  });
}

function checkFields(file, fields, tensors) {
  const epsilon = fields["llama.attention.layer_norm_rms_epsilon"];
  if (!(epsilon > 0 && epsilon < 1)) {
    throw new LabError(`${file} does not say llama.attention.layer_norm_rms_epsilon: ${INSTEAD}.`);
  }
  const scaled = Object.keys(fields).find(name => name.startsWith("llama.rope.scaling"));
  const strange = scaled ?? ["output.weight", "rope_freqs.weight"].find(name => name in tensors);
  if (strange) throw new LabError(`${file} has ${strange}, which the lab does not compute: ${INSTEAD}.`);
}

// A tensor whose `read(first, rows)` gives float32, as `openSafetensors` has them.
function tensorIn({ blob, file, begin, tensors }, name, shape, config) {
  const own = nameInFile(name);
  const { sides, type, offset } = tensors[own] ?? {};
  if (!sides) throw new LabError(`${file} has no ${own}, which a Llama needs: download it again.`);
  const [rows, length = 1] = shape;
  const [wanted, has] = [[...shape].reverse().join(" × "), sides.join(" × ")];
  if (wanted !== has)
    throw new LabError(`${file}: ${own} is ${has}, and should be ${wanted}. Instead, ${INSTEAD}.`);
  const kind = TYPES[type];
  if (!kind || length % kind.numbers) {
    const known = Object.values(TYPES).map(one => one.name);
    throw new LabError(
      `${file}: ${own} is kept in a form that the lab does not read (GGUF's type ${type}). Choose the model's file in ` +
        `one of ${known.join(", ")}.`,
    );
  }
  const row = (length / kind.numbers) * kind.bytes;
  const from = begin + offset;
  if (from + rows * row > blob.size) throw new LabError(`${file} is cut off: download it again.`);
  const numbersOf = async (first, count) =>
    unpacked(
      kind,
      await blob.slice(from + first * row, from + (first + count) * row).arrayBuffer(),
      count * length,
    );
  const turned = [LLAMA_KINDS[0], LLAMA_KINDS[1]].some(one => name.includes(one));
  const read = async (first = 0, count = rows - first) =>
    (turned ? await inOrder(numbersOf, first, count, length, config.D) : await numbersOf(first, count))
      .buffer;
  return { file, dtype: "F32", shape, bytes: 4 * rows * length, read };
}

function unpacked({ bytes, numbers, read }, buffer, count) {
  const view = new DataView(buffer);
  const out = new Float32Array(count);
  for (let at = 0, to = 0; to < count; at += bytes, to += numbers) read(view, at, out, to);
  return out;
}

// llama.cpp turns neighbouring numbers of a head, so its rows 2c and 2c + 1 are those that Hugging Face, and the lab,
// have at c and c + D/2.
async function inOrder(numbersOf, first, count, length, D) {
  const head = Math.floor(first / D) * D;
  const end = Math.ceil((first + count) / D) * D;
  const numbers = await numbersOf(head, end - head);
  const out = new Float32Array(count * length);
  for (let i = 0; i < count; i++) {
    const [begin, place] = [Math.floor((first + i) / D) * D - head, (first + i) % D];
    const from = begin + (place < D / 2 ? 2 * place : 2 * place - D + 1);
    out.set(numbers.subarray(from * length, (from + 1) * length), i * length);
  }
  return out;
}

function readTokenizer({ file, fields }, config) {
  const { "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges } = fields;
  const [kind, pre] = [fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]];
  if (kind !== "gpt2" || pre !== "smollm" || !tokens || !merges) {
    throw new LabError(
      `${file} has a tokenizer of the kind “${kind}, ${pre}”. The lab reads “gpt2, smollm”, that of SmolLM2: ${INSTEAD}.`,
    );
  }
  const types = fields["tokenizer.ggml.token_type"] ?? [];
  const ids = tokens.map((written, id) => [written, id]);
  const special = Object.fromEntries(ids.filter(([, id]) => types[id] === SPECIAL));
  const parts = fromVocabulary(Object.fromEntries(ids), merges, file, Object.keys(special), false);
  return new Tokenizer({ ...parts, special, digits: true, endOfText: config.endOfText });
}
