// The worker: it holds the model and does all arithmetic, so that the page stays quick under the reader's fingers.
//
// The page sends {id, job, …}; the answer is {id, result} or {id, error}, and before it perhaps some {id, news}.
import { ordered } from "./adapter.js";
import { adapterFiles, readAdapter } from "./adapter_files.js";
import { readModelConfig } from "./config.js";
import { LabError } from "./errors.js";
import { kindOf } from "./layers.js";
import { GPT2 } from "./model.js";
import { readSafetensors } from "./safetensors.js";
import { likeliest, pick, probabilities, seeded } from "./sampling.js";
import { Tokenizer } from "./tokenizer.js";
import { Diverged, Trainer } from "./trainer.js";

export let model;
export let tokenizer;
let prose; // what the base wrote before any training, in other words: its kind of text
let run; // the training that goes on, or is paused
const adapters = new Map(); // by name, as they are in files
let shown = null; // the one that the sliders turn, in the model's memory: {adapter, whole, inOrder}

// ---- One thing at a time -----------------------------------------------------------------------------------------

let last = Promise.resolve();

// Do `work` when all that was asked for before is done. Training asks again for each step: others come in between.
function inTurn(work) {
  const done = last.then(work);
  last = done.catch(() => {});
  return done;
}

// Let messages come in. Unlike a timer, this is not slowed down while the page is in the background.
function breathe() {
  return new Promise(resolve => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

// ---- Adapters ----------------------------------------------------------------------------------------------------

// Make the model use the named adapter as the sliders are set, `view`: {adapter, rank, strength, off}. No name: none.
export async function show(view) {
  const adapter = adapters.get(view?.adapter);
  if (shown && shown.adapter !== adapter) {
    shown.whole.free();
    shown.inOrder?.free();
    shown = null;
  }
  if (!adapter) return model.use(null);
  shown ??= { adapter, whole: await model.place(adapter) };
  const cut = view.rank < adapter.r;
  if (cut) shown.inOrder ??= await model.place(ordered(adapter));
  return model.use(cut ? shown.inOrder : shown.whole, view);
}

function describe(name) {
  const { r, alpha, layers } = adapters.get(name);
  return { name, r, alpha, kinds: [...new Set(Object.keys(layers).map(kindOf))] };
}

// ---- Writing -----------------------------------------------------------------------------------------------------

const asked = { base: 0, adapted: 0 }; // they count up: a text that is no longer wanted stops

// Token by token; `news` is told of them. Ends at the end of a text, or when `wanted()` is false.
async function write(view, { prompt, count, temperature, seed }, news, wanted = () => true) {
  const random = seeded(seed);
  const ids = begin(prompt, model.config.context - count);
  const written = [];
  await show(view);
  model.restart();
  let logits = await model.next(ids);
  while (written.length < count && wanted()) {
    const id = pick(logits, temperature, random);
    if (id === tokenizer.endOfText) break;
    written.push(id);
    news({ tokens: pieces(written), ids: written });
    if (written.length % 4 === 0) await breathe();
    logits = await model.next([id]);
  }
  return { tokens: pieces(written), ids: written };
}

// A prompt's token ids, `most` of them at most. An empty one begins where a text begins.
function begin(prompt, most) {
  const ids = tokenizer.encode(prompt);
  if (ids.length > most)
    throw new LabError(`The prompt has ${ids.length} tokens, at most ${most} fit: shorten it.`);
  return ids.length ? ids : [tokenizer.endOfText];
}

// The text of each token. Where a letter is made of several tokens, the last of them shows it.
function pieces(ids) {
  let before = "";
  return ids.map((_, i) => {
    const text = tokenizer.decode(ids.slice(0, i + 1)).replace(/\uFFFD+$/, "");
    const piece = text.slice(before.length);
    before = text;
    return piece;
  });
}

function wordOf(id) {
  return id === tokenizer.endOfText ? "(end of text)" : tokenizer.decode([id]);
}

// ---- Training ----------------------------------------------------------------------------------------------------

const EVERY = 10; // steps, between two measurements

// Ends after `settings.steps`, or when the held-out loss has not fallen for `settings.patience` steps.
async function train(settings, news) {
  const seen = { tokens: 0, ms: 0 };
  await measure(settings, news);
  while (run.trainer.step < settings.steps && !run.stopped && !ranOut(settings)) {
    const before = performance.now();
    const loss = await inTurn(() => run.trainer.advance());
    const { step, window } = run.trainer;
    seen.ms += performance.now() - before;
    seen.tokens += settings.batch * window;
    news({
      step,
      loss,
      perSecond: seen.tokens / (seen.ms / 1000),
      left: ((settings.steps - step) * seen.ms) / step,
    });
    await breathe();
    if (step % EVERY === 0 || step === settings.steps) await measure(settings, news);
    if (run.paused) {
      adapters.set(run.name, await run.trainer.loaded.read());
      news({ pausedAt: step });
    }
    while (run.paused && !run.stopped) await called(run);
  }
  return run.trainer.step;
}

// The losses beside the training, and what the adapter writes. The one with the lowest held-out loss is put aside.
async function measure(settings, news) {
  const at = run.trainer.step;
  const losses = await inTurn(() => run.trainer.measure());
  const lowest = !(losses.heldOut >= run.best?.heldOut);
  if (lowest) run.best = { step: at, heldOut: losses.heldOut };
  news({ at, best: run.best.step, ...losses });
  const { tokens } = await inTurn(() => sample(settings));
  if (lowest) run.best.adapter = adapters.get(run.name);
  news({ at, sample: tokens.join("") });
}

const ranOut = ({ patience }) => run.trainer.step - (run.best?.step ?? 0) >= patience;

// Until the page says go on, or stop.
function called(sleeper) {
  return new Promise(resolve => {
    sleeper.wake = resolve;
  });
}

// Name the adapters of a run that ends with `final`. Training that only did harm, or diverged, has no best one.
function putAway(final, { diverged }) {
  const { name, best, trainer } = run;
  const chosen = best?.adapter && best.step > 0 && best.step < trainer.step && !diverged;
  adapters.set(name, chosen ? best.adapter : final);
  if (chosen) adapters.set(`${name}-last`, final);
  return { best: chosen ? best.step : trainer.step, last: chosen ? `${name}-last` : null };
}

// What the adapter in training writes by now; it can be chosen like any other from here on.
async function sample({ prompt }) {
  adapters.set(run.name, await run.trainer.loaded.read());
  const view = { adapter: run.name, rank: run.trainer.settings.r, strength: 1, off: [] };
  return write(view, { prompt, count: 40, temperature: 0.8, seed: 1 }, () => {});
}

// The probability of each token after these.
async function nextAfter(ids, view) {
  await show(view);
  model.restart();
  return probabilities(await model.next(ids));
}

// ---- Jobs --------------------------------------------------------------------------------------------------------

export const jobs = {
  // The model's files and this browser's kernels.
  load({ wasm, config, weights, tokens, prose: text }) {
    tokenizer = new Tokenizer(tokens);
    model = new GPT2(wasm, readModelConfig(config), readSafetensors(weights, true).tensors);
    prose = text;
    return { megabytes: model.megabytes, config: model.config };
  },

  // Keep an adapter under a name: {file name: ArrayBuffer}.
  async keep({ name, files }) {
    adapters.set(name, await readAdapter(files, model));
    return describe(name);
  },

  // Two texts, without and with the adapter; a newer job of this kind ends them. `base: false` leaves the first out,
  // and with `left`, a view, another adapter writes it.
  async write({ view, base, left = null, ...settings }, news) {
    const texts = {};
    const one = async (which, shownAs) => {
      const mine = ++asked[which];
      const wanted = () => mine === asked[which];
      const tell = text => news({ [which]: text });
      texts[which] = await inTurn(() => write(shownAs, settings, tell, wanted));
    };
    await breathe(); // a newer one may wait already
    await Promise.all([base && one("base", left), one("adapted", view)]);
    return texts;
  },

  // The `count` likeliest next tokens after a prompt and the tokens `ids`, with their probabilities without and with
  // the adapter, or with that of the view `left` and that of `view`. `also`: more tokens that are wanted.
  bars({ view, left = null, prompt, ids: written, count, also }) {
    return inTurn(async () => {
      const context = [...begin(prompt, model.config.context), ...written];
      const [base, adapted] = [await nextAfter(context, left), await nextAfter(context, view)];
      const ids = new Set([...likeliest(base, count), ...likeliest(adapted, count), ...also]);
      const most = id => Math.max(base[id], adapted[id]);
      const likelyFirst = [...ids].sort((a, b) => most(b) - most(a));
      const wanted = likelyFirst.filter((id, i) => i < count || also.includes(id));
      return wanted.map(id => ({ id, text: wordOf(id), base: base[id], adapted: adapted[id] }));
    });
  },

  // How many tokens a text has.
  count({ text }) {
    return tokenizer.encode(text).length;
  },

  // Train on a text; `news` has each step, and each measurement. Then `name` is the adapter of the step with the
  // lowest held-out loss, `best`, and if that was not the last step, `last` names the one at the end.
  async train({ name, settings }, news) {
    if (run) throw new LabError("A training is going on: stop it first.");
    run = { name, trainer: await inTurn(() => Trainer.start(model, tokenizer, settings, prose)) };
    const { trainer } = run;
    const outcome = { diverged: null, last: null };
    try {
      await train(settings, news);
    } catch (error) {
      if (!(error instanceof Diverged)) throw error;
      outcome.diverged = error.message;
    } finally {
      Object.assign(outcome, putAway(await trainer.loaded.read(), outcome), { ranOut: ranOut(settings) });
      trainer.free();
      run = null;
    }
    return { ...describe(name), steps: trainer.step, ...outcome };
  },
  pause() {
    if (run) run.paused = true;
  },
  goOn() {
    if (run) run.paused = false;
    run?.wake?.();
  },
  stop() {
    if (run) run.stopped = true;
    run?.wake?.();
  },

  // The two files of an adapter as the sliders have it, {file name: bytes}.
  files({ view }) {
    return adapterFiles(chosen(view), view, model);
  },
};

// The adapter that a view shows: its own directions where all are used, else those in order of size.
function chosen({ adapter: name, rank }) {
  const adapter = adapters.get(name);
  return rank < adapter.r ? ordered(adapter) : adapter;
}

self.onmessage = async ({ data: { id, job, ...what } }) => {
  try {
    postMessage({ id, result: await jobs[job](what, news => postMessage({ id, news })) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
