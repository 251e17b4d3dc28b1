// The address of the page says what the sliders say, so that a link can say it:
// #adapter=plays&rank=2&alpha=1.5&off=mlp.c_fc&prompt=…
import { $ } from "./shared.js";
import { setRankLimit, showSliders, view } from "./write.js";

const IN_ADDRESS = ["adapter", "rank", "alpha", "temperature", "seed", "prompt"];

export function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const names = [...$("adapter").options].map(option => option.value);
  if (names.includes(asked.get("adapter"))) $("adapter").value = asked.get("adapter");
  setRankLimit();
  for (const id of IN_ADDRESS.slice(1)) if (asked.has(id)) $(id).value = asked.get(id);
  const off = (asked.get("off") ?? "").split(",");
  for (const box of $("on").querySelectorAll("input")) box.checked = !off.includes(box.value);
  showSliders();
}

export function addressOfSettings() {
  const said = IN_ADDRESS.map(id => [id, $(id).value]);
  const { off } = view();
  if (off.length) said.push(["off", off.join(",")]);
  return `${location.href.split("#")[0]}#${new URLSearchParams(said)}`;
}

export function writeAddress() {
  try {
    history.replaceState(null, "", addressOfSettings());
  } catch {
    // A browser may refuse it, to a page opened as a file or after very many changes: the button below still works.
  }
}
