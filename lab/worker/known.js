// How the base's own kind of text begins. What a model in training writes after it shows what it forgot.
export const KNOWN = "Once upon a time";
