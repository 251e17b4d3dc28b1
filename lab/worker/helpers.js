// Data-parallel training, as on several GPUs: each worker has the whole model and computes the gradients of some rows
// of a step; the gradients of A and B, which are small, are added. They are added in a fixed order, so on one machine the
// same number of workers always gives the same bits.
import { LabError } from "../errors.js";
import { wantedIn } from "../model/targets.js";
import { Link } from "./messages.js";

// A helper ended, or no longer answers.
export class HelperLost extends LabError {}

export class Crew {
  // Start `helpers` workers beside this one. They load the same model (`load`: see the worker's job of that name) and
  // train `adapter`.
  static async start(helpers, load, adapter) {
    const crew = new Crew(helpers, load.source);
    try {
      await crew.all("load", { ...load, device: "wasm" });
      await crew.all("join", { adapter });
    } catch (error) {
      crew.end();
      throw error;
    }
    return crew;
  }

  constructor(helpers, source) {
    this.links = Array.from({ length: helpers }, () => new Link(source));
  }

  all(job, what) {
    return Promise.all(this.links.map(link => link.ask(job, what)));
  }

  // The mean loss of a step; its gradients are added to those of `loaded`, which is in use in `model`.
  async lossAndGradients(model, loaded, rows, targets) {
    const wanted = wantedIn(targets);
    const [own, ...shares] = split(rows, targets, this.links.length + 1);
    const weights = loaded.weights();
    const asked = shares.map((share, i) => this.links[i].ask("share", { ...share, wanted, weights }));
    let loss = model.lossAndGradients(own.rows, own.targets, true, wanted);
    for (const share of await this.received(asked)) {
      loaded.addGradients(share.gradients);
      loss += share.loss;
    }
    return loss;
  }

  // The helpers' answers. Throws HelperLost if one does not come.
  async received(asked) {
    try {
      return await Promise.all(asked);
    } catch (error) {
      throw new HelperLost(`A helper was lost, so one worker goes on alone. (${error.message})`);
    }
  }

  end() {
    for (const link of this.links) link.end();
  }
}

// How much faster a crew is than one worker, measured in the first steps of a run: one worker computes every second of
// them alone. The first two only warm up: the browser still compiles.
export class SpeedUp {
  static STEPS = 8;

  constructor(workers) {
    Object.assign(this, { workers, alone: [], together: [] });
  }

  isAlone(step) {
    return step <= SpeedUp.STEPS && step % 2 === 1;
  }

  took(step, ms) {
    if (step > 2 && step <= SpeedUp.STEPS) (this.isAlone(step) ? this.alone : this.together).push(ms);
  }

  // {workers, alone, together}, milliseconds of a step; null until they are measured.
  get result() {
    const { workers, alone, together } = this;
    if (together.length < SpeedUp.STEPS / 2 - 1) return null;
    return { workers, alone: median(alone), together: median(together) };
  }
}

function median(values) {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

// The rows in even shares, larger ones first. With more workers than rows, some get none.
function split(rows, targets, count) {
  const used = Math.min(count, rows.length);
  const ends = Array.from({ length: used + 1 }, (_, i) => Math.ceil((i * rows.length) / used));
  return ends.slice(1).map((end, i) => ({
    rows: rows.slice(ends[i], end),
    targets: targets.slice(ends[i], end),
  }));
}
