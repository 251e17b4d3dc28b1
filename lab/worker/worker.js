// The worker: it has the model and does all arithmetic, so that the page stays responsive.
//
// What the page asks, and what it hears, is in messages.js. When the GPU is lost, the page gets {device}, without an id.

import { LabError } from "../errors.js";
import { adapterFiles, readAdapter } from "../files/adapter_files.js";
import { openModel } from "../files/model_files.js";
import { Ordering } from "../model/adapter.js";
import { kindOf } from "../model/layers.js";
import { likeliest, pick, probabilities, seeded } from "../model/sampling.js";
import { modelOn } from "./device.js";
import { KNOWN } from "./known.js";
import { answer, mayTakeLong } from "./messages.js";
import { Diverged, Trainer } from "./trainer.js";

export let model;
let made; // what the model is made of, on any device: {source, wasm, exact, name}
export let tokenizer;
let prose; // what the base wrote before any training, in other words: its kind of text
let loadedFrom; // what the model was loaded from
let run; // the training that goes on, or is paused
let joined; // in a helper: the adapter that it learns, see helpers.js
const adapters = new Map(); // by name, as they are in files
let shown = null; // the one that the sliders turn, in the model's memory: {adapter, whole, inOrder}

// ---- One thing at a time -----------------------------------------------------------------------------------------

const SLICE = 100; // milliseconds, after which messages come in

let last = Promise.resolve();

// Do `work` when all that was asked for before is done. Training asks again for each step: others come in between.
function inTurn(work) {
  const done = last.then(() => despiteLoss(work));
  last = done.catch(() => {});
  return done;
}

// Do `work`. If the GPU is lost on the way, go on without it, and do the work again from its beginning.
async function despiteLoss(work) {
  try {
    return await work();
  } catch (error) {
    if (!model?.lost) throw error;
    try {
      await useModel(await modelOn("wasm", made));
    } catch (why) {
      throw new LabError(`${error.message} The processor could not take over: ${why.message}`);
    }
    model.device.why = error.message;
    postMessage({ device: model.device });
    return work();
  }
}

// Use another model of the same weights from here on.
async function useModel(other) {
  model.free();
  model = other;
  shown = null;
  await run?.trainer?.moveTo(model);
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
export async function show(view, news = () => {}) {
  const adapter = adapters.get(view?.adapter);
  if (shown && shown.adapter !== adapter) {
    shown.whole.free();
    shown.inOrder?.free();
    shown = null;
  }
  if (!adapter) return model.use(null);
  shown ??= { adapter, whole: await model.place(adapter) };
  const cut = view.rank < adapter.r;
  if (cut) shown.inOrder ??= await model.place(await ordered(adapter, news));
  return model.use(cut ? shown.inOrder : shown.whole, view);
}

const orderings = new WeakMap(); // of adapters whose rank was turned down

// The adapter with its directions in the order of their size. `news` hears how far it is, and messages come in.
async function ordered(adapter, news) {
  const ordering = orderings.get(adapter) ?? new Ordering(adapter);
  orderings.set(adapter, ordering);
  for (let shownAt = performance.now(); !ordering.done; ) {
    mayTakeLong();
    ordering.step();
    if (performance.now() - shownAt < SLICE) continue;
    news({ ordering: `${ordering.all - ordering.left.length} of ${ordering.all}` });
    await breathe();
    shownAt = performance.now();
  }
  return ordering.adapter;
}

function describe(name) {
  const { r, alpha, layers } = adapters.get(name);
  return { name, r, alpha, kinds: [...new Set(Object.keys(layers).map(kindOf))] };
}

// ---- Writing -----------------------------------------------------------------------------------------------------

const asked = { base: 0, adapted: 0 }; // they count up: a text that is no longer wanted stops

// Token by token; `news` hears each of them. Ends at the end of a text, or when `wanted()` is false.
async function write(view, { prompt, count, temperature, seed }, news, wanted = () => true) {
  const random = seeded(seed);
  const { context } = model.config;
  const ids = begin(prompt, context - Math.min(count, Math.floor(context / 2)));
  const written = [];
  await show(view, news);
  model.restart();
  let logits = await model.next(ids);
  while (written.length < count && ids.length + written.length < context && wanted()) {
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
    throw new LabError(`The prompt has ${ids.length} tokens, but at most ${most} fit: shorten it.`);
  if (ids.length) return ids;
  if (tokenizer.endOfText === null) throw new LabError("The prompt is empty: type a word.");
  return [tokenizer.endOfText];
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
  const { trainer } = run;
  const seen = { tokens: 0, ms: 0 };
  mayTakeLong();
  if (!run.stopped) await measure(settings, news);
  while (await mayGoOn(news)) {
    const before = performance.now();
    if (trainer.step === 0) mayTakeLong();
    const loss = await inTurn(() => trainer.advance());
    const { step } = trainer;
    seen.ms += performance.now() - before;
    seen.tokens += settings.batch * trainer.lesson.window;
    news({
      step,
      loss,
      perSecond: seen.tokens / (seen.ms / 1000),
      left: ((settings.steps - step) * seen.ms) / step,
      speedUp: trainer.speedUp?.result,
      alone: trainer.alone, // why there is one worker now, where there were several
    });
    await breathe();
    if (step % EVERY === 0 || step === settings.steps) await measure(settings, news);
  }
  return trainer.step;
}

// Whether another step is wanted: waits while the page has said pause.
async function mayGoOn(news) {
  const { trainer } = run;
  if (run.paused && !run.stopped) {
    adapters.set(run.name, await inTurn(() => trainer.loaded.read()));
    news({ pausedAt: trainer.step });
  }
  while (run.paused && !run.stopped) await called(run);
  return !run.stopped && trainer.step < trainer.settings.steps && !ranOut();
}

// The losses beside the training, and what the adapter writes. The one with the lowest held-out loss is put aside.
async function measure(settings, news) {
  const at = run.trainer.step;
  const losses = await inTurn(() => run.trainer.measure());
  const adapter = await inTurn(() => run.trainer.loaded.read());
  adapters.set(run.name, adapter); // it can be chosen like any other from here on
  const lowest = !(losses.heldOut >= run.best?.heldOut);
  if (lowest) run.best = { step: at, heldOut: losses.heldOut, adapter };
  const safe = at > 0 && (lowest || run.best.step === 0);
  news({ at, best: run.best.step, ...losses, files: safe ? await wholeFiles(adapter) : null });
  const tokens = await inTurn(() => sample(settings, settings.prompt));
  const known = await inTurn(() => sample(settings, settings.knownPrompt ?? KNOWN));
  if (!run.stopped) news({ at, sample: tokens, known });
}

// An adapter's two files, as it was trained.
function wholeFiles(adapter) {
  return adapterFiles(adapter, { rank: adapter.r, strength: 1, off: [] }, model);
}

// Whether the held-out loss has not fallen for as many steps as the settings allow.
function ranOut() {
  const { step, settings } = run.trainer;
  return step - (run.best?.step ?? 0) >= settings.patience;
}

// Until the page says go on, or stop.
function called(sleeper) {
  return new Promise(resolve => {
    sleeper.wake = resolve;
  });
}

// What the adapter in training writes by now. Stop and pause cut it short.
async function sample({ temperature = 0.8 }, prompt) {
  const view = { adapter: run.name, rank: run.trainer.settings.r, strength: 1, off: [] };
  const settings = { prompt, count: 40, temperature, seed: 1 };
  const wanted = () => !run.stopped && !run.paused;
  const { tokens } = await write(view, settings, () => {}, wanted);
  return tokens.join("");
}

// A whole run, and its adapters: under the run's name that of the step with the lowest held-out loss, `best`; if that
// was not the last step, `last` names the one at the end. A run that diverged, or only did harm, has the last one alone,
// and one of no step has none. `files` has the files of each, by its name.
async function trained(settings, news) {
  const { name, trainer } = run;
  let diverged = null;
  try {
    await train(settings, news);
  } catch (error) {
    if (!(error instanceof Diverged)) throw error;
    diverged = error.message;
  }
  if (trainer.step === 0) {
    adapters.delete(name);
    return { name, steps: 0, diverged };
  }
  const final = await inTurn(() => trainer.loaded.read());
  const { step, adapter } = run.best ?? {};
  const lowest = adapter && step > 0 && step < trainer.step && !diverged;
  const last = lowest ? `${name}-last` : null;
  adapters.set(name, lowest ? adapter : final);
  if (lowest) adapters.set(last, final);
  const best = lowest ? step : trainer.step;
  const files = {};
  for (const one of last ? [name, last] : [name]) files[one] = await wholeFiles(adapters.get(one));
  return { ...describe(name), steps: trainer.step, diverged, best, last, ranOut: ranOut(), files };
}

// The probability of each token after these.
async function nextAfter(ids, view, news) {
  await show(view, news);
  model.restart();
  return probabilities(await model.next(ids));
}

// ---- Jobs --------------------------------------------------------------------------------------------------------

export const jobs = {
  // Load a model, `what`: {files, name, wasm, exact, device, prose, source}: its `files`, see `openModel`, this browser's
  // kernels, the prose that training must not forget, and this script, for helpers. The model before stays if that fails;
  // if it works, its adapters are gone.
  load(what, news) {
    if (run) throw new LabError("A run is training: stop it first.");
    return inTurn(async () => {
      mayTakeLong();
      const source = await openModel(what.files);
      const parts = { source, wasm: what.wasm, exact: what.exact, name: what.name };
      const loaded = await modelOn(what.device, parts, share => {
        news({ share });
        mayTakeLong(); // for the next piece
      });
      model?.free();
      [model, made, tokenizer, prose, loadedFrom, shown] = [
        loaded,
        parts,
        source.tokenizer,
        what.prose,
        what,
        null,
      ];
      adapters.clear();
      const { config, name, megabytes, device, stored, rounded } = model;
      return { config, name, megabytes, device, stored, rounded };
    });
  },

  // Move the model to another device, "webgpu" or "wasm". If that fails, it stays where it is.
  device({ device }) {
    return inTurn(async () => {
      if (run) throw new LabError("A run is training: stop it first.");
      if (device !== model.device.kind) await useModel(await modelOn(device, made));
      return model.device;
    });
  },

  // Keep an adapter under a name: {file name: ArrayBuffer}.
  async keep({ name, files }) {
    adapters.set(name, await readAdapter(files, model));
    return describe(name);
  },

  // Two texts, without and with the adapter; a newer job of this kind ends them. `base: false` leaves the first out;
  // `left`, a view, has another adapter write it.
  async write({ view, base, left = null, ...settings }, news) {
    const texts = {};
    const one = async (which, shownAs) => {
      const mine = ++asked[which];
      const wanted = () => mine === asked[which];
      const tell = what => news(what.ordering ? what : { [which]: what });
      texts[which] = await inTurn(() => write(shownAs, settings, tell, wanted));
    };
    await breathe(); // a newer one may wait already
    await Promise.all([base && one("base", left), one("adapted", view)]);
    return texts;
  },

  // The `count` likeliest next tokens after a prompt and the tokens `ids`, with their probabilities without and with
  // the adapter, or with those of `left` and `view`. `also`: more tokens that are wanted.
  bars({ view, left = null, prompt, ids: written, count, also }, news) {
    return inTurn(async () => {
      const context = [...begin(prompt, model.config.context), ...written];
      const [base, adapted] = [await nextAfter(context, left, news), await nextAfter(context, view, news)];
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

  // Train on a text; `news` has each step, and each measurement. For the answer see `trained`.
  async train({ name, settings }, news) {
    if (run) throw new LabError("A run is training: stop it first.");
    run = { name }; // stop and pause are heard from now on, even while a text is being written
    try {
      mayTakeLong();
      run.trainer = await inTurn(() => Trainer.start(model, tokenizer, settings, prose, loadedFrom));
      return await trained(settings, news);
    } finally {
      run.trainer?.free();
      run = null;
    }
  },
  // Milliseconds of a step with these settings, of a run that is thrown away.
  pace({ settings }) {
    return inTurn(async () => {
      mayTakeLong();
      const trainer = await Trainer.start(model, tokenizer, settings, prose, loadedFrom);
      try {
        const before = performance.now();
        await trainer.advance();
        return performance.now() - before;
      } finally {
        trainer.free();
      }
    });
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

  // The two files of an adapter as the sliders are set, {file name: bytes}.
  async files({ view }, news) {
    const adapter = adapters.get(view.adapter);
    const cut = view.rank < adapter.r;
    return adapterFiles(cut ? await ordered(adapter, news) : adapter, view, model);
  },

  // A helper's jobs, see helpers.js: get ready to learn `adapter`; compute the gradients of some rows with these weights.
  async join({ adapter }) {
    joined = await model.place(adapter, true);
    model.use(joined);
  },
  share({ rows, targets, wanted, weights }) {
    if (!joined.warm) mayTakeLong();
    joined.warm = true;
    joined.setWeights(weights);
    const loss = model.lossAndGradients(rows, targets, true, wanted);
    return { loss, gradients: joined.takeGradients() };
  },
};

answer(jobs);
