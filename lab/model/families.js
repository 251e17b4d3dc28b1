// The families of models that the lab computes, on any device.
import { GPT2 } from "./gpt2.js";
import { Llama } from "./llama.js";

const FAMILIES = { gpt2: GPT2, llama: Llama };

// The class of a model of this config on a device, which is a class that extends Transformer.
export function familyOn(Device, { family }) {
  return FAMILIES[family](Device);
}
