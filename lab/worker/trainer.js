// A training run on a reader's text, or on questions and answers, as `lora_lib.fit` trains: AdamW, a rate that climbs and
// falls, clipped gradients.

import { LabError } from "../errors.js";
import { checkSettings, newAdapter } from "../model/adapter.js";
import { largestRank } from "../model/layers.js";
import { seeded } from "../model/sampling.js";
import { Crew, HelperLost, SpeedUp } from "./helpers.js";
import { PairLesson, TextLesson } from "./lessons.js";

const SAVE_EVERY = 10; // steps
const MAX_RISE = 2; // nats by which the loss may rise over its start before a run is given up

// The loss is not finite, or far above where it began.
export class Diverged extends LabError {}

export class Trainer {
  // `settings`: {text or pairs, r, alpha, kinds, rate, steps, batch, workers}, see lessons.js; `prose`: the text that must
  // not be forgotten.
  // `load`: what the model was loaded from, for other workers. A GPU works alone.
  static async start(model, tokenizer, settings, prose, load) {
    checkSettings(settings, largestRank(model.config));
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
    this.lesson = settings.pairs
      ? new PairLesson(tokenizer, settings, context)
      : new TextLesson(tokenizer, settings, prose, context);
    this.random = seeded(1); // always the same: two runs read the same rows in the same order
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
    this.batch ??= this.lesson.draw(this.settings.batch, this.random);
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

  // The losses on what is not trained on: what was held back from the lesson, and what the base could do before. Throws
  // Diverged if the last step was too far: `advance` sees only the loss before it.
  async measure() {
    this.model.use(this.loaded);
    const heldOut = await this.model.loss(...this.lesson.heldOut);
    const prose = await this.model.loss(...this.lesson.prose);
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
