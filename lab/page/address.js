// The address of the page says what the sliders say, so that a link can say it:
// #adapter=plays&rank=2&alpha=1.5&off=mlp.c_fc&prompt=…, and with carried=… it has the adapter itself.
import { $, chosenAdapter, lab, on, suggestPrompt, view } from "./state.js";
import { setRankLimit, showSliders } from "./write.js";

const IN_ADDRESS = ["adapter", "rank", "alpha", "temperature", "seed", "prompt"];

export function asked() {
  return new URLSearchParams(location.hash.slice(1));
}

// Set the controls as the address says. Returns {unknown, ignored}: the name of an adapter that is not here, or null, and
// in words what is not a number.
export function readAddress() {
  const said = asked();
  const names = [...$("adapter").options].map(option => option.value);
  const name = said.get("adapter");
  const unknown = name !== null && !names.includes(name);
  if (name && !unknown) $("adapter").value = name;
  setRankLimit();
  const isWrong = id => $(id).type !== "text" && !/^\d*\.?\d+$/.test(said.get(id));
  const wanted = IN_ADDRESS.slice(1).filter(id => said.has(id));
  for (const id of wanted) if (!isWrong(id)) $(id).value = said.get(id);
  const wrong = wanted.filter(isWrong).map(id => `${id}=${said.get(id).slice(0, 20)}`);
  if (!said.has("prompt")) suggestPrompt(chosenAdapter().prompt);
  const off = (said.get("off") ?? "").split(",");
  for (const box of $("on").querySelectorAll("input")) box.checked = !off.includes(box.value);
  showSliders();
  const ignored = wrong.length
    ? ` It says ${wrong.join(" and ")}, which is not a number and is left out.`
    : "";
  return { unknown: unknown ? name : null, ignored };
}

export function addressOf(said) {
  return `${location.href.split("#")[0]}#${new URLSearchParams(said)}`;
}

export function addressOfSettings() {
  const said = IN_ADDRESS.map(id => [id, $(id).value]);
  const { adapter, off } = view();
  if (off.length) said.push(["off", off.join(",")]);
  if (adapter === "carried" && lab.carried) said.push(["carried", lab.carried.letters]);
  return addressOf(said);
}

// The address follows what is set, but not a recording.
on("changed", () => {
  if (lab.playing) return;
  try {
    history.replaceState(null, "", addressOfSettings());
  } catch {
    // A browser may refuse it, to a page opened as a file or after very many changes: the button below still works.
  }
});
