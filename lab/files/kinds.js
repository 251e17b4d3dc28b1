// Files that are no part of a model as the lab reads it: what they are, and what to choose instead.

const STRANGE = [
  [/^adapter_(config|model)\./i, "part of an adapter, not of a model. Choose the model's files."],
  [
    /\.(bin|pt|pth|ckpt)$/i,
    "a file that PyTorch has pickled, which can run code. Save the model as safetensors, with save_pretrained, and " +
      "choose model.safetensors.",
  ],
  [
    /\.safetensors\.index\.json$|-\d+-of-\d+\.safetensors$/i,
    "part of a model whose weights are split among several files, which the lab does not read. Save the model " +
      'again with save_pretrained(folder, max_shard_size="100GB").',
  ],
];

// What the first such file among these names is, in words; `more`: other kinds, as above. Undefined where there is none.
export function strangeAmong(names, more = []) {
  for (const [pattern, words] of [...STRANGE, ...more]) {
    const name = names.find(one => pattern.test(one));
    if (name) return `${name} is ${words}`;
  }
  return undefined;
}

// A reader's selection, by its first names.
export function selection(names) {
  const rest = names.length > 3 ? ` and ${names.length - 3} more` : "";
  return `Your selection (${names.slice(0, 3).join(", ")}${rest})`;
}
