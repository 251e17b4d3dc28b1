// Adapters: in WebAssembly's memory, in JavaScript, and as the two files that `lora_lib` and Hugging Face PEFT open.
const CONFIG_FILE = "adapter_config.json";
const WEIGHTS_FILE = "adapter_model.safetensors";

// An adapter is {r, alpha, s, layers: {"h.0.attn.c_attn": {d, k, A, B}, …}}: A (r, d), which is A transposed, and
// B (r, k), both Float32Arrays.

const MAX_RANK = 320; // the shorter side of every layer of gpt2-mini

// The layers of these kinds, {name: {d, k}}, in the order in which `lora_lib` names them.
function layerShapes(kinds = Object.keys(KINDS), { C, depth } = { C: 320, depth: 6 }) {
  const names = Array.from({ length: depth }, (_, l) => kinds.map(kind => [`h.${l}.${kind}`, KINDS[kind]]));
  return Object.fromEntries(names.flat().map(([name, { d, k }]) => [name, { d: d * C, k: k * C }]));
}

// A new one: A random, B zero, so that it changes nothing yet. As `lora_lib.LoRA` begins.
function newAdapter({ r, alpha, kinds }, random) {
  const layers = layerShapes(kinds);
  for (const layer of Object.values(layers)) {
    const bound = 1 / Math.sqrt(layer.d);
    layer.A = Float32Array.from({ length: r * layer.d }, () => (2 * random() - 1) * bound);
    layer.B = new Float32Array(r * layer.k);
  }
  return { r, alpha, s: alpha / r, layers };
}

// The same adapter with its directions in the order of their size: `rank` q of it is the first q.
function ordered(adapter) {
  const layers = {};
  for (const [name, { d, k, A, B }] of Object.entries(adapter.layers)) {
    layers[name] = { d, k, ...orderBySize(A, B, adapter.r, d, k) };
  }
  return { ...adapter, layers };
}

// An adapter as the sliders leave it: its first `rank` directions, `strength` times as strong, some kinds left out.
// {} when nothing is left.
function turned(layers, { rank, strength, off }) {
  const on = Object.entries(layers).filter(([name]) => !off.includes(kindOf(name)));
  return rank > 0 && strength > 0 ? Object.fromEntries(on) : {};
}

function kindOf(name) {
  return name.replace(/^h\.\d+\./, "");
}

// An adapter copied into the model's memory: all A and B in one stretch. With `learning` three more of the same
// length: the gradient, and the two means that AdamW keeps.
class LoadedAdapter {
  constructor(memory, adapter, learning = false) {
    this.memory = memory;
    this.adapter = adapter;
    this.size = 0;
    this.places = Object.entries(adapter.layers).map(([name, { A, B }]) => {
      const place = { name, A: this.size, B: this.size + A.length };
      this.size += A.length + B.length;
      return place;
    });
    this.w = memory.alloc(this.size);
    if (learning) for (const what of ["g", "m", "v"]) this[what] = memory.alloc(this.size);
    this.write(adapter);
  }

  write({ layers }) {
    const weights = this.memory.floats(this.w, this.size);
    for (const { name, A, B } of this.places) {
      weights.set(layers[name].A, A);
      weights.set(layers[name].B, B);
    }
  }

  // A copy as it is now.
  read() {
    const weights = this.memory.floats(this.w, this.size);
    const layers = {};
    for (const { name, A, B } of this.places) {
      const { d, k } = this.adapter.layers[name];
      const { r } = this.adapter;
      layers[name] = { d, k, A: weights.slice(A, A + r * d), B: weights.slice(B, B + r * k) };
    }
    return { ...this.adapter, layers };
  }

  // What `GPT2.use` takes.
  bypasses({ rank = this.adapter.r, strength = 1, off = [] } = {}) {
    const all = {};
    for (const { name, A, B } of this.places) {
      const bypass = { A: this.w + 4 * A, B: this.w + 4 * B, r: rank, s: strength * this.adapter.s };
      all[name] = this.g ? { ...bypass, dA: this.g + 4 * A, dB: this.g + 4 * B } : bypass;
    }
    return turned(all, { rank, strength, off });
  }

  free() {
    for (const begin of [this.w, this.g, this.m, this.v]) if (begin) this.memory.free(begin);
  }
}

// ---- Files -----------------------------------------------------------------------------------------------------
// `lora_A.weight` is (r, d), as A is kept here; `lora_B.weight` is (k, r), our B transposed.

// {file name: bytes} of an adapter as the sliders leave it. `sample`: see `GPT2.baseSample`.
function adapterFiles(adapter, view, sample) {
  const { rank: r, strength } = view;
  const layers = turned(adapter.layers, view);
  const tensors = {};
  for (const [name, { d, k, A, B }] of Object.entries(layers)) {
    const path = `base_model.model.transformer.${name}`;
    tensors[`${path}.lora_A.weight`] = { shape: [r, d], data: A.slice(0, r * d) };
    tensors[`${path}.lora_B.weight`] = { shape: [k, r], data: transposed(B, r, k) };
  }
  const config = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    r,
    lora_alpha: strength * adapter.s * r,
    lora_dropout: 0,
    target_modules: Object.keys(layers).map(name => `transformer.${name}`),
    bias: "none",
    use_rslora: false,
    fan_in_fan_out: true, // Hugging Face's GPT-2 keeps its weights as (d, k)
    inference_mode: true,
    base_model_name_or_path: null,
  };
  const numbers = sample(Object.keys(layers)).map(w => w.toPrecision(4));
  const metadata = { format: "pt", base_sample: numbers.join(" ") };
  return {
    [WEIGHTS_FILE]: writeSafetensors(tensors, metadata),
    [CONFIG_FILE]: new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`),
  };
}

// The adapter in these files, {name: ArrayBuffer}, which `lora_lib`, PEFT or this page wrote.
// Throws LabError, which says why, for one that gpt2-mini cannot take.
function readAdapter(files, sample) {
  for (const name of [CONFIG_FILE, WEIGHTS_FILE]) {
    if (!files[name])
      throw new LabError(`${name} is missing: choose both of an adapter's files, or a zip of them.`);
  }
  const { r, lora_alpha: alpha, use_rslora: rooted } = readConfig(files[CONFIG_FILE]);
  const { metadata, tensors } = readSafetensors(files[WEIGHTS_FILE]);
  const layers = {};
  for (const [name, { d, k }] of Object.entries(layerShapes())) {
    const path = `base_model.model.transformer.${name}`;
    const [A, B] = ["A", "B"].map(part => {
      const key = `${path}.lora_${part}.weight`;
      const tensor = tensors[key];
      delete tensors[key];
      const want = part === "A" ? [r, d] : [k, r];
      if (tensor && `${tensor.shape}` !== `${want}`) {
        throw new LabError(
          `${key} is ${tensor.shape.join(" × ")}, gpt2-mini needs ${want.join(" × ")}: another base?`,
        );
      }
      if (tensor && !tensor.data.every(Number.isFinite))
        throw new LabError(`${key} has NaN or infinity in it.`);
      return tensor?.data;
    });
    if (Boolean(A) !== Boolean(B)) throw new LabError(`${name} has only one of A and B.`);
    if (A) layers[name] = { d, k, A, B: transposed(B, k, r) };
  }
  const [strange] = Object.keys(tensors);
  if (strange)
    throw new LabError(
      `${strange} is no part of a LoRA adapter for gpt2-mini: was it made for another base?`,
    );
  if (!Object.keys(layers).length) throw new LabError("There is no layer in this adapter.");
  checkBase(metadata.base_sample, sample(Object.keys(layers)));
  return { r, alpha, s: alpha / (rooted ? Math.sqrt(r) : r), layers };
}

// Fields that change no result, and values that ask for nothing; any other that is set is refused, never ignored.
const NO_EFFECT = `auto_mapping base_model_name_or_path corda_config eva_config fan_in_fan_out inference_mode lora_alpha
  lora_dropout megatron_core peft_type peft_version qalora_group_size r revision target_modules task_type use_rslora`;
const ASKS_NOTHING = { bias: ["none"], init_lora_weights: [true, "gaussian", "orthogonal"] };

function readConfig(buffer) {
  let config;
  try {
    config = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(buffer));
  } catch {
    throw new LabError(`${CONFIG_FILE} is no JSON.`);
  }
  if (config?.peft_type !== "LORA")
    throw new LabError(`${CONFIG_FILE} is not of a LoRA adapter (peft_type "LORA").`);
  for (const [key, value] of Object.entries(config)) {
    const empty = !value || (typeof value === "object" && Object.keys(value).length === 0);
    if (empty || NO_EFFECT.split(/\s+/).includes(key) || ASKS_NOTHING[key]?.includes(value)) continue;
    throw new LabError(`${CONFIG_FILE}: ${key} = ${JSON.stringify(value)} is not supported here.`);
  }
  const { r, lora_alpha } = config;
  if (!(Number.isInteger(r) && r >= 1 && r <= MAX_RANK)) {
    throw new LabError(
      `${CONFIG_FILE}: r must be a whole number from 1 to ${MAX_RANK}, it is ${JSON.stringify(r)}.`,
    );
  }
  if (!(typeof lora_alpha === "number" && lora_alpha > 0)) {
    throw new LabError(
      `${CONFIG_FILE}: lora_alpha must be a number above 0, it is ${JSON.stringify(lora_alpha)}.`,
    );
  }
  return config;
}

// An adapter that `lora_lib` saved has a sample of the base's weights with it: another base is noticed.
function checkBase(saved, own) {
  const found = (saved ?? "").split(" ").filter(Boolean).map(Number);
  if (!found.length) return;
  const alike =
    found.length === own.length &&
    found.every((w, i) => Math.abs(w - own[i]) <= 2 ** -8 * Math.abs(own[i]) + 1e-7);
  if (!alike) throw new LabError("This adapter was made for a model with other weights than gpt2-mini's.");
}

// M (rows, columns) as (columns, rows).
function transposed(M, rows, columns) {
  const out = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) out[j * rows + i] = M[i * columns + j];
  }
  return out;
}
