// Several workers train together, each with the whole model: each computes the gradients of some rows of a step, and the
// gradients of A and B, which are small, are added. That is data-parallel training, as on several GPUs. The gradients
// are added in a fixed order, so the same number of workers gives the same bits.
import { Link } from "./link.js";

export class Crew {
  // `helpers` workers beside this one, with the model that `load` describes, see the worker's job `load`. They will
  // learn `adapter`.
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
    for (const share of await Promise.all(asked)) {
      loaded.addGradients(share.gradients);
      loss += share.loss;
    }
    return loss;
  }

  end() {
    for (const link of this.links) link.end();
  }
}

export function wantedIn(targets) {
  return targets.flat().filter(target => target >= 0).length;
}

// The rows as even shares, the larger ones first. With more workers than rows, some get none.
function split(rows, targets, count) {
  const used = Math.min(count, rows.length);
  const ends = Array.from({ length: used + 1 }, (_, i) => Math.ceil((i * rows.length) / used));
  return ends.slice(1).map((end, i) => ({
    rows: rows.slice(ends[i], end),
    targets: targets.slice(ends[i], end),
  }));
}
