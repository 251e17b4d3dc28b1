// The chat model's file: fetched once from beside this page and kept by the browser, or chosen by the reader.
import { LabError } from "../errors.js";
import { jsonOf } from "../files/json.js";
import { selection, strangeAmong } from "../files/kinds.js";
import { GGUF, openModel, TEMPLATE } from "../files/model_files.js";
import { openSafetensors } from "../files/safetensors.js";
import { HERE } from "./engine.js";

const KEPT = "lora-book-chat";
const TRAINING_PAGES = 11_500; // of 64 kB: what training on short lines takes at most, about 750 MB
const SMALL = 4; // GB of memory that a device has, below which training may not fit
const MOST = 2000; // megabytes that WebAssembly gives to a page
const WEIGHTS = "model.safetensors";
const NEEDED = ["config.json", WEIGHTS, "tokenizer.json"];
const ALONE = [/\.gguf$/i, "a whole model: choose it alone."];
const CONFIG = "tokenizer_config.json"; // in which older models have the chat template

export const isServed = () => CHAT !== null && location.protocol.startsWith("http");

// Whether there is enough memory on a device, in a sentence.
export function memoryWords(device) {
  if (device === "webgpu") {
    return "The weights lie in the GPU's memory. No browser says how much there is: if it is too little, the page says so, and the processor can go on.";
  }
  const needs =
    "It takes about 290 MB of memory, and in training up to 750 MB for short lines, more for long ones.";
  try {
    new WebAssembly.Memory({ initial: TRAINING_PAGES, maximum: 32768 });
  } catch {
    return `${needs} This browser refuses that much: here it may answer, but training will fail. Use a computer.`;
  }
  const { deviceMemory } = navigator;
  if (deviceMemory < SMALL) {
    return `${needs} This device says that it has ${deviceMemory} GB: the browser may end the page. Use a computer.`;
  }
  return `${needs} This browser offers that much.`;
}

// The file, from the browser's cache or from beside this page. CHAT is {file, bytes}, which the build puts in.
// `progress` hears the share that has arrived; `signal` stops it.
export async function fetchModel(progress, signal) {
  const address = new URL(CHAT.file, HERE).href;
  const cache = await openCache();
  const kept = await cache?.match(address);
  if (kept) return kept.blob();
  const answer = await fetch(address, { signal });
  if (!answer.ok)
    throw new LabError(`${CHAT.file} is not beside this page (${answer.status}): choose a GGUF file.`);
  const blob = await received(answer, progress);
  if (blob.size !== CHAT.bytes) {
    throw new LabError(`${blob.size} of ${CHAT.bytes} bytes have arrived: press Load again.`);
  }
  await cache?.put(address, new Response(blob)).catch(() => {}); // a browser without room fetches it again
  return blob;
}

// null where the browser keeps nothing.
async function openCache() {
  try {
    return await globalThis.caches?.open(KEPT);
  } catch {
    return null;
  }
}

async function received(answer, progress) {
  const parts = [];
  let bytes = 0;
  const reader = answer.body.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    parts.push(next.value);
    bytes += next.value.length;
    progress(bytes / CHAT.bytes);
  }
  return new Blob(parts);
}

// ---- The reader's own files ----------------------------------------------------------------------------------------

// A GGUF file, or a Llama's files: {files, title, words}, where `words` say what it takes. Nothing but the head of the
// weights is read. Throws LabError for what the lab cannot take.
export async function chosenModel(chosen) {
  const files = await named([...chosen]);
  const { tensors } = await openModel(files);
  const counts = Object.values(tensors).map(({ shape }) =>
    shape.reduce((product, side) => product * side, 1),
  );
  const numbers = counts.reduce((sum, count) => sum + count, 0) / 1e6;
  const weights = files[GGUF] ?? files[WEIGHTS];
  const size = `${weights.name}, ${Math.ceil(weights.size / 1e6)} MB`;
  const memory = Math.ceil(2 * numbers); // each number takes two bytes
  if (memory > MOST) {
    throw new LabError(`${size}: its weights take ${memory} MB of memory, and a page has ${MOST} at most.`);
  }
  const takes = `about ${memory} MB of memory, and in training two to three times as much`;
  return { files, title: size, words: `${size}: ${numbers.toFixed(1)} million numbers, ${takes}.` };
}

async function named(chosen) {
  if (chosen.length === 1 && (await isGguf(chosen[0]))) return { [GGUF]: chosen[0] };
  const files = Object.fromEntries(chosen.map(file => [file.name, file]));
  const names = Object.keys(files);
  const strange = files[WEIGHTS] ? undefined : strangeAmong(names, [ALONE]);
  if (strange) throw new LabError(strange);
  const missing = NEEDED.filter(name => !files[name]);
  if (!files[TEMPLATE] && !files[CONFIG]) missing.push(`${TEMPLATE} (or ${CONFIG})`);
  await checkFamily(files);
  if (missing.length) {
    throw new LabError(
      `${selection(names)} lacks ${missing.join(", ")}. Choose a GGUF file alone, or all files of a Llama together.`,
    );
  }
  const template = files[TEMPLATE] ?? jsonOf(await files[CONFIG].text(), CONFIG).chat_template;
  if (!template) throw new LabError(`${CONFIG} has no chat template: choose ${TEMPLATE}, too.`);
  return { ...Object.fromEntries(NEEDED.map(name => [name, files[name]])), [TEMPLATE]: template };
}

const isGguf = async file => /\.gguf$/i.test(file.name) || (await file.slice(0, 4).text()) === "GGUF"; // under any name

// A GPT-2 has no chat template, so files of it would never be complete.
async function checkFamily({ [WEIGHTS]: weights }) {
  if (!weights) return;
  const { tensors } = await openSafetensors(weights);
  if (Object.keys(tensors).some(name => /^(transformer\.)?h\.0\./.test(name))) {
    throw new LabError(
      `${WEIGHTS} has a GPT-2, and this page trains a Llama with a chat template: open a GPT-2 on the page “The lab”.`,
    );
  }
}
