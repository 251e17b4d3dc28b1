// From logits to words: the next token's probabilities, and a choice among them.
const AMONG = 50; // a sample is one of the 50 likeliest tokens

// Random numbers from 0 to 1 that a seed decides: the same seed, the same text. (The algorithm is "mulberry32".)
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// The ids of the `count` largest logits, largest first.
export function likeliest(logits, count) {
  const top = [];
  for (let id = 0; id < logits.length; id++) {
    if (top.length === count && logits[id] <= logits[top.at(-1)]) continue;
    let at = top.length;
    while (at > 0 && logits[top[at - 1]] < logits[id]) at--;
    top.splice(at, 0, id);
    if (top.length > count) top.pop();
  }
  return top;
}

// softmax: the probability of every token.
export function probabilities(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b));
  const weights = Float64Array.from(logits, logit => Math.exp(logit - top));
  const total = weights.reduce((a, b) => a + b);
  return weights.map(weight => weight / total);
}

// Temperature 0 takes the likeliest token. Above 0, chance decides among the likeliest: the higher, the freer.
export function pick(logits, temperature, random) {
  const ids = likeliest(logits, temperature > 0 ? AMONG : 1);
  const weights = ids.map(id => Math.exp((logits[id] - logits[ids[0]]) / (temperature || 1)));
  let left = random() * weights.reduce((a, b) => a + b);
  for (let i = 0; i < ids.length; i++) {
    left -= weights[i];
    if (left < 0) return ids[i];
  }
  return ids[0];
}
