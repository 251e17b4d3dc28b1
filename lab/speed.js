// How fast a model computes on this machine: what a button of the page shows.
import { newAdapter } from "./adapter.js";
import { KINDS } from "./layers.js";
import { seeded } from "./sampling.js";

const ROWS = 4; // of a training step, and tokens in each
const WINDOW = 64;
const LORA = { r: 8, alpha: 16, kinds: KINDS };
const MS = 1000; // that each of the two measurements takes at least

// {step, tokens, gflops}: milliseconds of a training step, tokens written a second, and 10^9 additions and
// multiplications a second in the large products of a step.
export async function measureSpeed(model) {
  const { C, V, depth, inner, context } = model.config;
  const T = Math.min(WINDOW, context);
  const random = seeded(3);
  const row = () => Array.from({ length: T }, () => Math.floor(random() * V));
  const [rows, targets] = [0, 1].map(() => Array.from({ length: ROWS }, row));
  const loaded = await model.place(newAdapter(model.config, LORA, random), true);
  model.use(loaded);
  const step = await repeated(() => model.step(loaded, rows, targets, { step: 1, rate: 0, most: Infinity }));

  model.restart();
  const token = await repeated(async () => {
    if (model.read === context) model.restart();
    await model.next([rows[0][0]]);
  });
  model.use(null);
  loaded.free();
  // Forward x·W, backward g·Wᵀ: two products with each weight, one multiplication and one addition for each number.
  const weights = depth * (4 * C * C + 2 * C * inner) + V * C;
  return { step, tokens: 1000 / token, gflops: (4 * ROWS * T * weights) / step / 1e6 };
}

// Milliseconds of one repetition. The first two compile kernels, and find out how long they take: they do not count,
// but where the second takes long enough to be measured, it is not repeated.
async function repeated(work) {
  await work();
  const second = await forAtLeast(0, work);
  return second > MS ? second : forAtLeast(MS, work);
}

// Repeat for so many milliseconds, at least once; returns those of one repetition.
async function forAtLeast(ms, work) {
  const begin = performance.now();
  let count = 0;
  do {
    await work();
    count++;
  } while (performance.now() - begin < ms);
  return (performance.now() - begin) / count;
}
