// Jobs for the tests, which the tests append to the lab's worker.
// {name: {A: [], B: []}} into an adapter, and its gradients out of one.
function adapterOf({ r, alpha, layers }) {
  const shapes = layerShapes();
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

function learner(adapter) {
  const loaded = new LoadedAdapter(model.memory, adapterOf(adapter), true);
  for (const what of ["g", "m", "v"]) model.kernels.zero(loaded[what], loaded.size);
  model.use(loaded.bypasses());
  return loaded;
}

Object.assign(jobs, {
  encode: ({ texts }) => texts.map(text => tokenizer.encode(text)),
  decode: ({ lists }) => lists.map(ids => tokenizer.decode(ids)),
  // The logits after the last of `ids`, read in two pieces, so that the caches are used.
  logits({ view, ids, first }) {
    show(view);
    model.read = 0;
    if (first) model.next(ids.slice(0, first));
    return Array.from(model.next(ids.slice(first)));
  },
  gradients({ adapter, rows, targets }) {
    const loaded = learner(adapter);
    const loss = model.loss(rows, targets, true);
    const gradients = gradientsOf(loaded);
    loaded.free();
    return { loss, gradients };
  },
  // The losses of these steps, and the milliseconds of each.
  steps({ adapter, batches, rate }) {
    const loaded = learner(adapter);
    const losses = [];
    const times = [];
    for (const [rows, targets] of batches) {
      const before = performance.now();
      losses.push(model.loss(rows, targets, true));
      update(model, loaded, losses.length, rate * rateFactor(losses.length - 1, batches.length));
      times.push(performance.now() - before);
    }
    loaded.free();
    return { losses, times };
  },
  // The nearest product of rank q, for each q from 1 to r, as A and B.
  ordered({ A, B, r, d, k }) {
    const out = orderBySize(Float32Array.from(A), Float32Array.from(B), r, d, k);
    return { A: Array.from(out.A), B: Array.from(out.B), sizes: out.sizes };
  },
});
