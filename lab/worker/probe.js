// The worker with more jobs, for the tests and tools/measure_lab.py. The page has none of them.
import { newAdapter } from "../model/adapter.js";
import { layerShapes } from "../model/layers.js";
import { likeliest, seeded } from "../model/sampling.js";
import { mayTakeLong } from "./messages.js";
import { rateFactor } from "./trainer.js";
import { jobs, model, show, tokenizer } from "./worker.js";

// {name: {A: [], B: []}} into an adapter, and its gradients out of one.
function adapterOf({ r, alpha, layers }) {
  const shapes = layerShapes(model.config);
  const filled = Object.entries(layers).map(([name, { A, B }]) => [
    name,
    { ...shapes[name], A: Float32Array.from(A), B: Float32Array.from(B) },
  ]);
  return { r, alpha, s: alpha / r, layers: Object.fromEntries(filled) };
}

function gradientsOf(loaded) {
  const g = model.memory.floats(loaded.g, loaded.size);
  const { r, layers } = loaded.adapter;
  return Object.fromEntries(
    loaded.places.map(({ name, A, B }) => {
      const { d, k } = layers[name];
      return [name, { A: Array.from(g.slice(A, A + r * d)), B: Array.from(g.slice(B, B + r * k)) }];
    }),
  );
}

async function learner(adapter) {
  const loaded = await model.place(adapterOf(adapter), true);
  model.use(loaded);
  return loaded;
}

// Train for some steps, and return their losses.
async function trainOn(loaded, batches, rate) {
  const losses = [];
  for (const [i, [rows, targets]] of batches.entries()) {
    mayTakeLong();
    const settings = { step: i + 1, rate: rate * rateFactor(i, batches.length), most: Infinity };
    losses.push(await model.step(loaded, rows, targets, settings));
  }
  return losses;
}

const helpers = [];
const { Worker: OfThisBrowser } = self;
if (OfThisBrowser) {
  self.Worker = class extends OfThisBrowser {
    constructor(...source) {
      super(...source);
      helpers.push(this);
    }
  };
}
const { grow } = WebAssembly.Memory.prototype;

let measured; // a new adapter, whose steps are measured

Object.assign(jobs, {
  // The logits after the last of `ids`, read in two pieces, so that the caches are used.
  async logits({ view, ids, first }) {
    await show(view);
    model.restart();
    if (first) await model.next(ids.slice(0, first));
    return Array.from(await model.next(ids.slice(first)));
  },
  async gradients({ adapter, rows, targets }) {
    const loaded = await learner(adapter);
    const loss = model.lossAndGradients(rows, targets, true);
    const gradients = gradientsOf(loaded);
    loaded.free();
    return { loss, gradients };
  },
  // The losses of these steps.
  async steps({ adapter, batches, rate }) {
    const loaded = await learner(adapter);
    const losses = await trainOn(loaded, batches, rate);
    loaded.free();
    return losses;
  },
  // The rate of each of these steps as a share of the peak.
  rates: ({ steps }) => Array.from({ length: steps }, (_, step) => rateFactor(step, steps)),
  // The same with a new adapter, `lora`: {r, alpha, kinds}, which stays for the next call. An adapter that travels as
  // JSON would cost more than the steps.
  async stepsOf({ lora, batches, rate }) {
    if (measured?.adapter.r !== lora.r) {
      measured?.free();
      measured = await model.place(newAdapter(model.config, lora, seeded(2)), true);
    }
    model.use(measured);
    return trainOn(measured, batches, rate);
  },
  // What the base writes, always the likeliest token.
  async greedy({ prompt, count }) {
    model.use(null);
    model.restart();
    const written = [];
    let logits = await model.next(tokenizer.encode(prompt));
    while (written.length < count) {
      const [id] = likeliest(logits, 1);
      written.push(id);
      logits = await model.next([id]);
    }
    return written;
  },
  memory: () => model.megabytes,
  // As when the browser ends a worker's helper.
  killHelper: () => helpers.at(-1).terminate(),
  // As when the worker never comes back from its work.
  hang() {
    for (;;);
  },
  // A machine that is busy with other things, in the fifth piece of a file.
  slow({ seconds }) {
    const { arrayBuffer } = Blob.prototype;
    let reads = 0;
    Blob.prototype.arrayBuffer = function () {
      const end = performance.now() + 1000 * seconds;
      if (++reads === 5) while (performance.now() < end);
      return arrayBuffer.call(this);
    };
  },
  // The browser gives no more memory than this.
  limit({ megabytes }) {
    WebAssembly.Memory.prototype.grow = function (pages) {
      if (this.buffer.byteLength + 65536 * pages > 1e6 * megabytes) throw new RangeError("no more");
      return grow.call(this, pages);
    };
  },
  // This browser starts no more workers.
  noWorkers() {
    self.Worker = undefined;
  },
  encode: ({ text }) => tokenizer.encode(text),
  // As when a driver crashes.
  loseGPU: () => model.gpu.device.destroy(),
});
