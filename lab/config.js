// A model's sizes, from its config.json.

// C the width, H heads, V tokens in the vocabulary, depth blocks, context tokens at most.
export function readModelConfig(text) {
  const config = JSON.parse(text);
  return {
    C: config.n_embd,
    H: config.n_head,
    V: config.vocab_size,
    depth: config.n_layer,
    context: config.n_positions,
  };
}
