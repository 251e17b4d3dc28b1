// A link to what the page shows. For the reader's own adapter it carries the adapter; the receiver sees its text at once.

import { LabError } from "../errors.js";
import { fromLink, toLink } from "../files/link_bytes.js";
import { kindOf } from "../model/layers.js";
import { addressOf, addressOfSettings, asked } from "./address.js";
import { ready } from "./loading.js";
import { $, BOOKS_ADAPTERS, lab, MINI, say, view } from "./state.js";
import { changed, showOption } from "./write.js";

const MOST_LETTERS = 80; // of a title

export function prepareSharing() {
  $("share").addEventListener("click", async () => {
    try {
      say("shared", "");
      await copy(await link());
    } catch (error) {
      say("shared", error.message, true);
    }
  });
}

async function copy(address) {
  const kind = address.includes("carried=")
    ? " It carries the adapter, in 8 bits a number, so its text may differ a little. Nothing was sent to a server."
    : "";
  const length = `${address.length.toLocaleString("en")} letters.`;
  try {
    await navigator.clipboard.writeText(address);
    say("shared", `Copied, ${length}${kind}`);
  } catch {
    say(
      "shared",
      `This browser does not let the page copy it, ${length}${kind} Copy it yourself: ${address}`,
    );
  }
}

// A link to the book's adapters says only what the sliders say.
function link() {
  return BOOKS_ADAPTERS.includes($("adapter").value) ? addressOfSettings() : carryingLink();
}

// The adapter as the sliders are set, in 8 bits a number, with the texts that it writes in 8 bits.
async function carryingLink() {
  const engine = await ready();
  if (lab.model !== MINI) {
    throw new LabError(
      "A link can only carry adapters of gpt2-mini, which every reader has: send this one as a file.",
    );
  }
  if (view().adapter === "carried" && asked().has("carried")) return addressOfSettings();
  const files = await engine.ask("files", { view: view() });
  const packed = await fromLink(await toLink(files, {}));
  const about = { title: title(), ...(await written(engine, packed)) };
  const letters = await toLink(files, about);
  changed(); // what was being written goes on
  const { prompt, temperature, seed } = about;
  return addressOf([
    ["adapter", "carried"],
    ["prompt", prompt],
    ["temperature", temperature],
    ["seed", seed],
    ["carried", letters],
  ]);
}

function title() {
  return $("adapter")
    .selectedOptions[0].textContent.replace(/^(yours|brought|sent to you): /, "")
    .slice(0, MOST_LETTERS);
}

// What the packed adapter writes.
async function written(engine, { files }) {
  const { kinds, r } = await engine.ask("keep", { name: "in the link", files });
  const shown = { adapter: "in the link", rank: r, strength: 1, off: [] };
  const prompt = $("prompt").value;
  const [temperature, seed] = ["temperature", "seed"].map(id => Number($(id).value));
  const texts = await engine.ask("write", {
    view: shown,
    base: true,
    prompt,
    temperature,
    seed,
    count: 60,
  });
  const bars = await engine.ask("bars", { view: shown, prompt, ids: [], count: 8, also: [] });
  return { kinds, prompt, temperature, seed, ...texts, bars: bars.map(rounded) };
}

const rounded = ({ id, text, base, adapted }) => ({
  id,
  text,
  base: Number(base.toFixed(6)),
  adapted: Number(adapted.toFixed(6)),
});

// ---- The receiver ------------------------------------------------------------------------------------------------

// Take the adapter that the address carries. Returns what it wrote, {prompt, base, scenes}, or null if the link has no
// texts. Throws LabError, which says what is broken.
export async function receive() {
  const letters = asked().get("carried");
  const { files, config, about } = await fromLink(letters);
  const kinds = [...new Set(config.target_modules.map(name => kindOf(name.replace("transformer.", ""))))];
  const said = typeof about.title === "string" ? about.title.slice(0, MOST_LETTERS) : "an adapter";
  const prompt = typeof about.prompt === "string" ? about.prompt : "";
  lab.carried = { letters, files, about: { title: said, r: config.r, kinds, prompt } };
  lab.adapters.delete("carried"); // of an earlier link
  showOption("carried", `sent to you: ${said}`);
  const shown = { adapter: "carried", rank: config.r, strength: 1, off: [] };
  const scene = { view: shown, adapted: about.adapted, bars: about.bars };
  return isWritten(about) ? { prompt, base: about.base, scenes: [scene] } : null;
}

// Anybody can make a link: nothing in it is taken for what it should be.
function isWritten({ base, adapted, bars }) {
  const isText = text =>
    Array.isArray(text?.tokens) &&
    Array.isArray(text.ids) &&
    text.tokens.length === text.ids.length &&
    text.tokens.length > 0 &&
    text.tokens.every(token => typeof token === "string") &&
    text.ids.every(Number.isInteger);
  const isShare = share => share >= 0 && share <= 1;
  return (
    isText(base) &&
    isText(adapted) &&
    Array.isArray(bars) &&
    bars.every(row => typeof row?.text === "string" && isShare(row.base) && isShare(row.adapted))
  );
}

// Why the adapter that the address names is not here.
export function notHere(name) {
  return new LabError(
    `This address names the adapter “${name}”, which is only in the browser that trained it. ` +
      "Ask for a link made there with “Copy a link to this” at rank 1 or 2, or for the adapter's file.",
  );
}
