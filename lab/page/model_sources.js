// A GPT-2 that the reader brings: files from their disk or from the Hugging Face Hub. The result is {name: Blob}, as
// `Engine.load` takes it.
import { LabError } from "../errors.js";
import { selection, strangeAmong } from "../files/kinds.js";

const CONFIG = "config.json";
const WEIGHTS = "model.safetensors";
const GGUF = [
  /\.gguf$/i,
  "a GGUF file. This page needs a GPT-2's model.safetensors, with config.json beside it. The page of the chat model " +
    "opens a GGUF of SmolLM2-Instruct.",
];
const TOKENIZERS = [["vocab.json", "merges.txt"], ["tokenizer.json"], ["bpe.tiktoken"]]; // the first that is whole

// The names of the files that make a model, out of those that are there. Throws LabError for one that is missing.
function neededOf(names, place) {
  const tokenizer = TOKENIZERS.find(files => files.every(file => names.includes(file)));
  const strange = names.includes(WEIGHTS) ? undefined : strangeAmong(names, [GGUF]);
  if (strange) throw new LabError(strange);
  const missing = [CONFIG, WEIGHTS].find(file => !names.includes(file));
  if (missing || !tokenizer) {
    throw new LabError(
      `${place} has no ${missing ?? "tokenizer"}. A GPT-2 needs ${CONFIG}, ${WEIGHTS}, and vocab.json with merges.txt, ` +
        "or tokenizer.json: choose them together.",
    );
  }
  return [CONFIG, WEIGHTS, ...tokenizer];
}

// Out of files that the reader chose, one by one or as a folder. Of two with the same name, the one nearest to the
// top counts.
export function chosenModelFiles(chosen) {
  const depth = file => (file.webkitRelativePath || file.name).split("/").length;
  const files = {};
  for (const file of [...chosen].sort((a, b) => depth(a) - depth(b))) {
    const known = files[file.name];
    if (known && depth(known) === depth(file)) {
      throw new LabError(`There are two files called ${file.name}: choose the folder of one model.`);
    }
    files[file.name] ??= file;
  }
  const needed = neededOf(Object.keys(files), selection(Object.keys(files)));
  return Object.fromEntries(needed.map(name => [name, files[name]]));
}

// What a model on the Hub would cost to fetch: {name, hub, files: [{name, url, bytes}], bytes}. Asks for the list of its
// files only. Throws LabError if there is no such model, or the lab cannot take it.
export async function lookAtHub(name, hub = "https://huggingface.co") {
  if (!/^[\w.-]+(\/[\w.-]+)?$/.test(name)) {
    throw new LabError(`“${name}” is not the name of a model on the Hub, such as openai-community/gpt2.`);
  }
  const response = await ask(`${hub}/api/models/${name}/tree/main`, name, hub);
  const entries = await response.json().catch(() => null);
  if (!Array.isArray(entries)) throw new LabError(`${hub} did not answer with a list of files.`);
  const sizes = new Map(entries.filter(({ type }) => type === "file").map(({ path, size }) => [path, size]));
  const files = neededOf([...sizes.keys()], `${name} on ${hub}`).map(file => ({
    name: file,
    url: `${hub}/${name}/resolve/main/${file}`,
    bytes: sizes.get(file),
  }));
  return { name, hub, files, bytes: files.reduce((sum, { bytes }) => sum + bytes, 0) };
}

// Fetch what `lookAtHub` found; `news` hears the share that has arrived. `signal` ends it.
export async function fetchFromHub({ name, hub, files, bytes }, { news = () => {}, signal } = {}) {
  const fetched = {};
  let done = 0;
  for (const file of files) {
    const response = await ask(file.url, name, hub, signal);
    fetched[file.name] = await blobOf(response, more => {
      done += more;
      news(Math.min(1, done / bytes));
    });
    if (fetched[file.name].size !== file.bytes) {
      throw new LabError(
        `${file.name} came with ${fetched[file.name].size} bytes instead of ${file.bytes}: try again.`,
      );
    }
  }
  return fetched;
}

async function ask(url, name, hub, signal) {
  let response;
  try {
    response = await fetch(url, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw new LabError("Stopped; nothing was kept.");
    throw new LabError(`${hub} could not be reached: are you online?`);
  }
  if (response.ok) return response;
  if ([401, 403, 404].includes(response.status)) {
    throw new LabError(`${hub} has no public model “${name}”.`);
  }
  throw new LabError(`${hub} answered with an error (${response.status}): try again later.`);
}

const AT_ONCE = 2 ** 24; // bytes that are kept in this page before the browser gets them as a Blob

async function blobOf(response, news) {
  const blobs = [];
  let chunks = [];
  let size = 0;
  const reader = response.body.getReader();
  const flush = () => {
    blobs.push(new Blob(chunks));
    [chunks, size] = [[], 0];
  };
  try {
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      chunks.push(value);
      size += value.length;
      news(value.length);
      if (size > AT_ONCE) flush();
    }
  } catch (error) {
    if (error.name === "AbortError") throw new LabError("Stopped; nothing was kept.");
    throw new LabError("The connection broke in the middle of a file: try again.");
  }
  flush();
  return new Blob(blobs);
}
