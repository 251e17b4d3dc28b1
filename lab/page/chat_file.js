// The chat model's file: fetched once from beside this page and kept by the browser, or chosen by the reader.
import { LabError } from "../errors.js";
import { HERE } from "./engine.js";

const KEPT = "lora-book-chat";
const TRAINING_PAGES = 11_500; // of 64 kB: what training on short lines takes at most, about 750 MB
const SMALL = 4; // GB of memory that a device has, below which training may not fit

export const isServed = () => CHAT !== null && location.protocol.startsWith("http");

// Whether this browser gives a page enough memory, in a sentence.
export function memoryWords() {
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
