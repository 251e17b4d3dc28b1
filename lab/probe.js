// Jobs for tests/test_lab.py and tools/measure_lab.py, which append them to the worker. The page has none of them.
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
  // The losses of these steps.
  steps({ adapter, batches, rate }) {
    const loaded = learner(adapter);
    const losses = [];
    for (const [rows, targets] of batches) {
      losses.push(model.loss(rows, targets, true));
      update(model, loaded, losses.length, rate * rateFactor(losses.length - 1, batches.length));
    }
    loaded.free();
    return losses;
  },
  // What the base writes, always the likeliest token.
  greedy({ prompt, count }) {
    model.use({});
    model.read = 0;
    let logits = model.next(tokenizer.encode(prompt));
    return Array.from({ length: count }, () => {
      const [id] = likeliest(logits, 1);
      logits = model.next([id]);
      return id;
    });
  },
  memory: () => model.memory.wasm.buffer.byteLength / 1e6,
});
