// A training run on a reader's text, as `lora_lib.fit` trains: AdamW, a rate that climbs and falls, clipped gradients.

import { LabError } from "../errors.js";
import { checkSettings, newAdapter } from "../model/adapter.js";
import { seeded } from "../model/sampling.js";
import { Crew, HelperLost, SpeedUp } from "./helpers.js";

const WINDOW = 64; // tokens of one row
const HELD_OUT = 0.1; // of the text, its end: never trained on
const MOST_ROWS = 4; // that a loss beside the training is measured on
const FEWEST_TOKENS = 40; // that a text must have
const SAVE_EVERY = 10; // steps
const MAX_RISE = 2; // nats by which the loss may rise over its start before a run is given up

// The loss is not finite, or far above where it began.
export class Diverged extends LabError {}

export class Trainer {
  // `settings`: {text, r, alpha, kinds, rate, steps, batch, workers}; `prose`: the text that must not be forgotten.
  // `load`: what the model was loaded from, for other workers. A GPU works alone.
  static async start(model, tokenizer, settings, prose, load) {
    checkSettings(settings, model.config.C);
    const trainer = new Trainer(model.config, tokenizer, settings, prose, load);
    trainer.saved = { w: newAdapter(model.config, settings, seeded(2)) };
    try {
      await trainer.moveTo(model);
    } catch (error) {
      trainer.free();
      throw error;
    }
    return trainer;
  }

  constructor({ context }, tokenizer, settings, prose, load) {
    Object.assign(this, { settings, load, step: 0, since: [], crew: null });
    const ids = tokenizer.encode(settings.text);
    if (ids.length < FEWEST_TOKENS) {
      throw new LabError(
        `The text has ${ids.length} tokens. At least ${FEWEST_TOKENS} are needed: paste some more.`,
      );
    }
    const heldOut = Math.max(8, Math.round(HELD_OUT * ids.length));
    this.ids = ids.slice(0, ids.length - heldOut);
    const most = Math.min(WINDOW, context);
    this.window = Math.min(most, this.ids.length - 1);
    this.heldOut = windows(ids.slice(ids.length - heldOut), most);
    this.prose = windows(tokenizer.encode(prose), most);
    this.random = seeded(1); // always the same: two runs read the same windows in the same order
  }

  // Train on this model from here on: take what was saved, and repeat the steps since then.
  async moveTo(model) {
    const { w, m, v } = this.saved;
    this.model = model;
    const helpers = Math.min(this.settings.workers ?? 1, this.settings.batch) - 1;
    if (helpers > 0 && model.device.kind === "wasm") {
      this.crew = await Crew.start(helpers, this.load, w);
      this.speedUp ??= new SpeedUp(helpers + 1);
    }
    this.loaded = await model.place(w, true);
    if (m) this.loaded.write(m, "m");
    if (v) this.loaded.write(v, "v");
    for (const [index, batch] of this.since.entries()) {
      await this.learn(batch, this.step - this.since.length + index + 1);
    }
  }

  // One step; returns its loss, that of the weights before it. Throws Diverged if that is too high: the weights are
  // then the last good ones. If a GPU is lost on the way, `moveTo` another model and call it again: it reads the same.
  async advance() {
    if (this.since.length >= SAVE_EVERY) await this.save();
    this.batch ??= this.draw(this.settings.batch);
    const loss = await this.learn(this.batch, this.step + 1);
    this.first ??= loss;
    if (this.tooHigh(loss, this.first)) throw this.diverged(loss);
    this.step++;
    this.since.push(this.batch);
    this.batch = null;
    return loss;
  }

  async learn(batch, step) {
    const { rate, steps } = this.settings;
    this.model.use(this.loaded);
    const before = performance.now();
    const one = {
      step,
      rate: rate * rateFactor(step - 1, steps),
      most: (this.first ?? Infinity) + MAX_RISE,
      crew: this.speedUp?.isAlone(step) ? null : this.crew,
    };
    try {
      const loss = await this.model.step(this.loaded, ...batch, one);
      this.speedUp?.took(step, performance.now() - before);
      return loss;
    } catch (error) {
      if (!(error instanceof HelperLost)) throw error;
      this.goOnAlone(error);
      return this.model.step(this.loaded, ...batch, { ...one, crew: null });
    }
  }

  // One worker computes all rows from here on, beginning with the step in which a helper was lost.
  goOnAlone({ message }) {
    this.loaded.takeGradients(); // those of some of the rows
    this.crew.end();
    this.crew = this.speedUp = null;
    this.alone = message;
  }

  // Copy what a step changes out of the model, in case its GPU is lost.
  async save() {
    const [w, m, v] = [await this.loaded.read("w"), await this.loaded.read("m"), await this.loaded.read("v")];
    this.saved = { w, m, v };
    this.since = []; // the batches since then
  }

  diverged(loss) {
    return new Diverged(
      `The loss is ${loss.toFixed(2)} after ${this.step} steps: a rate of ${this.settings.rate} is too high. ` +
        `The page keeps the adapter of step ${Math.max(0, this.step - 1)}. Try a tenth of the rate.`,
    );
  }

  // `count` windows of the text, each from a place that chance decides, and for each token the one that follows it.
  draw(count) {
    const { ids, window, random } = this;
    const starts = Array.from({ length: count }, () => Math.floor(random() * (ids.length - window)));
    const cut = shift => starts.map(at => ids.slice(at + shift, at + shift + window));
    return [cut(0), cut(1)];
  }

  // The losses on what is not trained on: the end of the same text, and other prose. Throws Diverged if the last step
  // was too far: `advance` sees only the loss before it.
  async measure() {
    this.model.use(this.loaded);
    const heldOut = await this.model.loss(...this.heldOut);
    const prose = await this.model.loss(...this.prose);
    this.heldOutFirst ??= heldOut;
    if (this.tooHigh(heldOut, this.heldOutFirst) || !Number.isFinite(prose))
      await this.checkLastStep(heldOut);
    return { heldOut, prose };
  }

  // A held-out loss that has risen may mean that the text was learned by heart: what was read last tells.
  async checkLastStep(heldOut) {
    const lastRead = this.since.at(-1);
    const loss = lastRead ? await this.model.loss(...lastRead) : heldOut;
    if (!this.tooHigh(loss, this.first)) return;
    this.loaded.goBack();
    throw this.diverged(loss);
  }

  tooHigh(loss, first) {
    return !(loss <= (first ?? Infinity) + MAX_RISE) || !Number.isFinite(loss);
  }

  free() {
    this.crew?.end();
    this.loaded?.free();
  }
}

// The rate of a step as a share of its peak: it climbs over the first tenth, and falls along a cosine to zero.
export function rateFactor(step, steps) {
  const climb = Math.max(1, Math.round(0.1 * steps));
  if (step < climb) return (step + 1) / climb;
  return 0.5 * (1 + Math.cos((Math.PI * (step - climb)) / Math.max(1, steps - climb)));
}

// Tokens cut into rows for `GPT2.loss`, one after the other, a few at most: [rows, targets].
function windows(ids, most) {
  const T = Math.min(most, ids.length - 1);
  const count = Math.min(MOST_ROWS, Math.floor((ids.length - 1) / T));
  const cut = shift => Array.from({ length: count }, (_, i) => ids.slice(i * T + shift, (i + 1) * T + shift));
  return [cut(0), cut(1)];
}
