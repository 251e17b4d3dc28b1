// The GPU's arithmetic: every kernel of a GPT-2 and a Llama with LoRA, forward and backward, and AdamW.
//
// A kernel is a small program, written in WGSL, that a GPU runs in thousands of threads at once. Each kernel here
// stands under the algebra that it computes, and each backward kernel under its forward kernel.
//
// Notation, as in model/transformer.js: B sequences of T tokens each, N = B·T tokens in all; C the model's width, V its
// vocabulary; H heads of queries and K of keys and values, of D numbers each; a layer has d inputs and k outputs; r is
// the rank. Matrices are stored row after row.
//
// Each row is padded with zeros to a multiple of four numbers, so that a kernel can read four numbers at a time (a
// vec4f) for any C and V. d4 is the length of a row of d numbers, counted in fours. The padding of a weight is zero,
// so the padding of a product is zero as well.

// How a kernel uses a buffer: what type it holds, and whether the kernel writes to it.
const READ = { type: "f32" };
const READ4 = { type: "vec4f" };
const WRITE = { type: "f32", writes: true };
const WRITE4 = { type: "vec4f", writes: true };
const IDS = { type: "i32" };
const WEIGHTS = { type: "weights" }; // float32 or float16: see `weightsCode`
const NOW = { type: "now" };

const SIZES = { B: "u32", T: "u32", L: "u32", H: "u32", K: "u32", D: "u32" }; // of attention

export const LANES = 64; // threads of a workgroup: they share memory and can wait for each other

// The numbers that change from step to step. Everything else about a step is fixed when it is recorded.
export const NOW_FIELDS = {
  past: "u32", // tokens that were read before
  weight: "f32", // 1 / number of wanted targets
  rate: "f32", // AdamW's learning rate, then 1 - 0.9^t and √(1 - 0.999^t) at step t
  fixM: "f32",
  fixV: "f32",
  most: "f32", // the weights do not move if the loss is above this
};

// ---- The large product: y = x·W + bias, and its backward pass, dx = g·Wᵀ ------------------------------------------
// Both multiply rows of `from4` fours by W, (d, k), to get rows of `to4` fours. Both read the same copy of W in
// blocks of 4 × 4: block(a, b) is what turns the a-th four of a row into a part of the b-th four of its product.
// A mat4x4f is given by its columns, so four rows of W make the transposed block: right for x·W as M·x.

const product = backward => ({
  buffers: backward ? { x: READ4, W: WEIGHTS, y: WRITE4 } : { x: READ4, W: WEIGHTS, bias: READ4, y: WRITE4 },
  bias: backward ? "vec4f(0.0)" : "bias[b]",
  block: `
fn block(a: u32, b: u32) -> mat4x4f {
  let step = ${backward ? "u.from4" : "u.to4"};
  let at = ${backward ? "4 * b * step + a" : "4 * a * step + b"};
  let M = mat4x4f(weight_W(at), weight_W(at + step), weight_W(at + 2 * step), weight_W(at + 3 * step));
  return ${backward ? "transpose(M)" : "M"};
}`,
  // Neighbouring lanes read neighbouring numbers of W: the sum's index or the result's index runs along a row of W.
  along: backward ? "lane % 8" : "lane / 8",
  across: backward ? "lane / 8" : "lane % 8",
});

// For many rows. A GPU's memory is far away, and a workgroup's shared memory is near. 64 threads fetch a tile of 32
// rows × 32 numbers of x and a tile of W, each thread a 64th, and then each computes 4 rows × 4 numbers of y.
function tiledProduct(backward) {
  const { buffers, bias, block, along, across } = product(backward);
  return {
    buffers,
    constants: { N: "u32", from4: "u32", to4: "u32" },
    rows: ({ N, to4 }) => Math.ceil(N / 32) * Math.ceil(to4 / 8),
    shared: `var<workgroup> tileX: array<vec4f, 256>; var<workgroup> tileW: array<vec4f, 256>;${block}`,
    code: `
      let tiles = (u.to4 + 7) / 8;
      let top = 32 * (row / tiles); // the tile's first row, and its first column in fours
      let left = 8 * (row % tiles);
      let down = 4 * (lane / 8); // this thread's 4 rows and 4 columns within the tile
      let right = lane % 8;
      var sums = mat4x4f(); // one column for each of the 4 rows
      for (var first = 0u; first < u.from4; first += 8) {
        for (var at = lane; at < 256; at += LANES) {
          let n = top + at / 8;
          let a = first + at % 8;
          tileX[at] = vec4f(0.0);
          if (n < u.N && a < u.from4) { tileX[at] = x[n * u.from4 + a]; }
        }
        let a = first + ${along};
        let b = left + ${across};
        var M = mat4x4f();
        if (a < u.from4 && b < u.to4) { M = block(a, b); }
        for (var q = 0u; q < 4; q++) { tileW[8 * (4 * (${along}) + q) + ${across}] = M[q]; }
        workgroupBarrier();
        for (var c = 0u; c < 8; c++) {
          let w = 32 * c + right;
          let r = 8 * down + c;
          sums += mat4x4f(tileW[w], tileW[w + 8], tileW[w + 16], tileW[w + 24]) *
            mat4x4f(tileX[r], tileX[r + 8], tileX[r + 16], tileX[r + 24]);
        }
        workgroupBarrier();
      }
      let b = left + right;
      for (var q = 0u; q < 4; q++) {
        let n = top + down + q;
        if (n < u.N && b < u.to4) { y[n * u.to4 + b] = sums[q] + ${bias}; }
      }`,
  };
}

// For one row, as in writing: a workgroup computes 8 fours of y, and 8 lanes share the sum of each.
function rowProduct(backward) {
  const { buffers, bias, block, along, across } = product(backward);
  return {
    buffers,
    constants: { from4: "u32", to4: "u32" },
    rows: ({ to4 }) => Math.ceil(to4 / 8),
    shared: block,
    code: `
      let part = ${along};
      let b = 8 * row + ${across};
      var sum = vec4f(0.0);
      if (b < u.to4) {
        for (var a = part; a < u.from4; a += 8) { sum += block(a, b) * x[a]; }
      }
      sum = sumOfEight(${across}, part, sum);
      if (part == 0 && b < u.to4) { y[b] = sum + ${bias}; }`,
  };
}

// Each kernel has `buffers` and `constants` by name, and `code`, the body of its main function. It runs for `threads`
// indices `i`, or for `rows` rows, each row by the 64 threads of one workgroup, whose `lane` is 0 to 63. In the code
// a constant N is `u.N`.
export const KERNELS = {
  matmul: tiledProduct(false),
  matmulBackward: tiledProduct(true),
  matmulOfOne: rowProduct(false),
  matmulBackwardOfOne: rowProduct(true),

  // ---- Embedding: x = wte[id], and in a GPT-2 x += wpe[place] ----------------------------------------------------
  embed: {
    buffers: { ids: IDS, wte: WEIGHTS, x: WRITE4 },
    constants: { N: "u32", d4: "u32" },
    threads: ({ N, d4 }) => N * d4,
    code: "x[i] = weight_wte(u32(ids[i / u.d4]) * u.d4 + i % u.d4);",
  },

  addPlaces: {
    buffers: { wpe: WEIGHTS, now: NOW, x: WRITE4 },
    constants: { N: "u32", T: "u32", d4: "u32" },
    threads: ({ N, d4 }) => N * d4,
    code: "x[i] += weight_wpe((now.past + i / u.d4 % u.T) * u.d4 + i % u.d4);",
  },

  // ---- The thin products of LoRA ---------------------------------------------------------------------------------
  // Three of them make its forward and its backward pass. M is A or B with one row for each of the r directions:
  // A transposed, (r, d), and B as it is, (r, k). m is the length of such a row.

  // c = s·x·Mᵀ, for x (N, m) and c (N, r). A workgroup computes 8 directions, 8 lanes each.
  project: {
    buffers: { x: READ4, M: READ4, c: WRITE },
    constants: { N: "u32", m4: "u32", r: "u32", s: "f32" },
    rows: ({ N, r }) => N * Math.ceil(r / 8),
    code: `
      let eights = (u.r + 7) / 8;
      let n = row / eights;
      let j = 8 * (row % eights) + lane / 8;
      let part = lane % 8;
      var sum = vec4f(0.0);
      if (j < u.r) {
        for (var a = part; a < u.m4; a += 8) { sum += x[n * u.m4 + a] * M[j * u.m4 + a]; }
      }
      sum = sumOfEight(lane / 8, part, sum);
      if (part == 0 && j < u.r) { c[n * u.r + j] = u.s * dot(sum, vec4f(1.0)); }`,
  },

  // y += c·M, for c (N, r) and y (N, m).
  expand: {
    buffers: { c: READ, M: READ4, y: WRITE4 },
    constants: { N: "u32", m4: "u32", r: "u32" },
    threads: ({ N, m4 }) => N * m4,
    code: `
      let n = i / u.m4;
      let column = i % u.m4;
      var sum = vec4f(0.0);
      for (var j = 0u; j < u.r; j++) { sum += c[n * u.r + j] * M[j * u.m4 + column]; }
      y[i] += sum;`,
  },

  // G = cᵀ·g, for c (N, r), g (N, m) and G (r, m).
  outer: {
    buffers: { c: READ, g: READ4, G: WRITE4 },
    constants: { N: "u32", m4: "u32", r: "u32" },
    threads: ({ r, m4 }) => r * m4,
    code: `
      let j = i / u.m4;
      let column = i % u.m4;
      var sum = vec4f(0.0);
      for (var n = 0u; n < u.N; n++) { sum += c[n * u.r + j] * g[n * u.m4 + column]; }
      G[i] = sum;`,
  },

  // ---- LayerNorm: y = (x - mean) / deviation · w + b, row by row -------------------------------------------------
  // Keeps each row's mean and 1 / deviation for the backward pass. The rows of x are counted from `first`.
  norm: {
    buffers: { x: READ, w: READ, b: READ, y: WRITE, kept: WRITE },
    constants: { N: "u32", C: "u32", stride: "u32", first: "u32", eps: "f32" },
    rows: ({ N }) => N,
    code: `
      let at = (u.first + row) * u.stride;
      var part = 0.0;
      for (var c = lane; c < u.C; c += LANES) { part += x[at + c]; }
      let mean = sumOfLanes(lane, part) / f32(u.C);
      part = 0.0;
      for (var c = lane; c < u.C; c += LANES) { part += (x[at + c] - mean) * (x[at + c] - mean); }
      let inverse = 1.0 / sqrt(sumOfLanes(lane, part) / f32(u.C) + u.eps);
      for (var c = lane; c < u.C; c += LANES) { y[row * u.stride + c] = (x[at + c] - mean) * inverse * w[c] + b[c]; }
      if (lane == 0) {
        kept[2 * row] = mean;
        kept[2 * row + 1] = inverse;
      }`,
  },

  // Backward, with z = (x - mean) / deviation and dz = g·w: dx += (dz - mean(dz) - z·mean(dz·z)) / deviation.
  // w and b are frozen and need no gradient.
  normBackward: {
    buffers: { x: READ, w: READ, kept: READ, g: READ, dx: WRITE },
    constants: { N: "u32", C: "u32", stride: "u32" },
    rows: ({ N }) => N,
    code: `
      let at = row * u.stride;
      let mean = kept[2 * row];
      let inverse = kept[2 * row + 1];
      var part = 0.0;
      var along = 0.0;
      for (var c = lane; c < u.C; c += LANES) {
        let dz = g[at + c] * w[c];
        part += dz;
        along += dz * (x[at + c] - mean) * inverse;
      }
      let meanOfG = sumOfLanes(lane, part) / f32(u.C);
      let meanAlong = sumOfLanes(lane, along) / f32(u.C);
      for (var c = lane; c < u.C; c += LANES) {
        let z = (x[at + c] - mean) * inverse;
        dx[at + c] += (g[at + c] * w[c] - meanOfG - z * meanAlong) * inverse;
      }`,
  },

  // ---- RMSNorm: y = x / √(mean(x²) + eps) · w, row by row --------------------------------------------------------
  // Keeps 1 / √… of each row for the backward pass.
  rmsNorm: {
    buffers: { x: READ, w: READ, y: WRITE, kept: WRITE },
    constants: { N: "u32", C: "u32", stride: "u32", first: "u32", eps: "f32" },
    rows: ({ N }) => N,
    code: `
      let at = (u.first + row) * u.stride;
      var part = 0.0;
      for (var c = lane; c < u.C; c += LANES) { part += x[at + c] * x[at + c]; }
      let inverse = 1.0 / sqrt(sumOfLanes(lane, part) / f32(u.C) + u.eps);
      for (var c = lane; c < u.C; c += LANES) { y[row * u.stride + c] = x[at + c] * inverse * w[c]; }
      if (lane == 0) { kept[row] = inverse; }`,
  },

  // Backward, with z = x / √… and dz = g·w: dx += (dz - z·mean(dz·z)) / √…
  rmsNormBackward: {
    buffers: { x: READ, w: READ, kept: READ, g: READ, dx: WRITE },
    constants: { N: "u32", C: "u32", stride: "u32" },
    rows: ({ N }) => N,
    code: `
      let at = row * u.stride;
      let inverse = kept[row];
      var along = 0.0;
      for (var c = lane; c < u.C; c += LANES) { along += g[at + c] * w[c] * x[at + c] * inverse; }
      let meanAlong = sumOfLanes(lane, along) / f32(u.C);
      for (var c = lane; c < u.C; c += LANES) {
        dx[at + c] += (g[at + c] * w[c] - x[at + c] * inverse * meanAlong) * inverse;
      }`,
  },

  // ---- Rotary positions: numbers c and c + D/2 of a head turn by an angle that grows with the token's place ------
  // angles (context, D) holds D/2 cosines and D/2 sines for each place. The backward pass turns back: sign -1.
  rope: {
    buffers: { angles: READ, now: NOW, x: WRITE },
    constants: { N: "u32", T: "u32", heads: "u32", D: "u32", stride: "u32", sign: "f32" },
    threads: ({ N, heads, D }) => (N * heads * D) / 2,
    code: `
      let half = u.D / 2;
      let c = i % half;
      let h = i / half % u.heads;
      let n = i / (half * u.heads);
      let turn = (now.past + n % u.T) * u.D + c;
      let at = n * u.stride + h * u.D + c;
      let cosine = angles[turn];
      let sine = u.sign * angles[turn + half];
      let a = x[at];
      let b = x[at + half];
      x[at] = a * cosine - b * sine;
      x[at + half] = b * cosine + a * sine;`,
  },

  // ---- Attention -------------------------------------------------------------------------------------------------
  // q (B, T, H·D), k and v (B, L, K·D): H/K heads of queries share one of keys and values. In training L = T; in
  // writing k and v are caches, with places for L tokens. p (B, H, T, L) says how much token t looks at token j. Each of
  // q, k, v is a part of a tensor: it begins `at…` in a row, and from row to row it is `stride…` numbers.

  // In writing, the caches keep what was read: cache[past + n] = x[n].
  append: {
    buffers: { x: READ4, now: NOW, cache: WRITE4 },
    constants: { N: "u32", m4: "u32" },
    threads: ({ N, m4 }) => N * m4,
    code: "cache[now.past * u.m4 + i] = x[i];",
  },

  // p = scale·q_t·k_j for each j up to t.
  scores: {
    buffers: { q: READ, k: READ, now: NOW, p: WRITE },
    constants: { ...SIZES, strideQ: "u32", atQ: "u32", strideK: "u32", atK: "u32", scale: "f32" },
    threads: ({ B, H, T, L }) => B * H * T * L,
    code: `
      let j = i % u.L;
      let t = i / u.L % u.T;
      let h = i / (u.L * u.T) % u.H;
      let b = i / (u.L * u.T * u.H);
      if (j > now.past + t) { return; }
      let one = (b * u.T + t) * u.strideQ + u.atQ + h * u.D;
      let other = (b * u.L + j) * u.strideK + u.atK + h * u.K / u.H * u.D;
      var sum = 0.0;
      for (var c = 0u; c < u.D; c++) { sum += q[one + c] * k[other + c]; }
      p[i] = u.scale * sum;`,
  },

  // p becomes e^p / Σ e^p over the tokens up to t, and 0 for those after it.
  softmax: {
    buffers: { now: NOW, p: WRITE },
    constants: SIZES,
    rows: ({ B, H, T }) => B * H * T,
    code: `
      let at = row * u.L;
      let seen = now.past + row % u.T + 1;
      var top = LOWEST;
      for (var j = lane; j < seen; j += LANES) { top = max(top, p[at + j]); }
      top = largestOfLanes(lane, top);
      var part = 0.0;
      for (var j = lane; j < seen; j += LANES) { part += exp(p[at + j] - top); }
      let sum = sumOfLanes(lane, part);
      for (var j = lane; j < u.L; j += LANES) { p[at + j] = select(0.0, exp(p[at + j] - top) / sum, j < seen); }`,
  },

  // y_t = Σ_{j≤t} p_tj·v_j, for each number c of a token. A workgroup computes 8 of them, and 8 lanes share each sum.
  gather: {
    buffers: { p: READ, v: READ, now: NOW, y: WRITE },
    constants: { ...SIZES, strideV: "u32", atV: "u32", strideY: "u32", atY: "u32" },
    rows: ({ B, T, H, D }) => B * T * Math.ceil((H * D) / 8),
    code: `
      let width = u.H * u.D;
      let eights = (width + 7) / 8;
      let n = row / eights;
      let c = 8 * (row % eights) + lane % 8;
      let part = lane / 8;
      let h = c / u.D;
      let t = n % u.T;
      let b = n / u.T;
      let seen = now.past + t + 1;
      let share = ((b * u.H + h) * u.T + t) * u.L;
      let value = b * u.L * u.strideV + u.atV + h * u.K / u.H * u.D + c % u.D;
      var sum = 0.0;
      if (c < width) {
        for (var j = part; j < seen; j += 8) { sum += p[share + j] * v[value + j * u.strideV]; }
      }
      sum = sumOfEight(lane % 8, part, vec4f(sum)).x;
      if (part == 0 && c < width) { y[n * u.strideY + u.atY + c] = sum; }`,
  },

  // Backward, for the gradient g at y, in training, which has no past. `scores` gives dp_tj = g_t·v_j. Then through the
  // softmax: dp becomes the gradient at q_t·k_j, scale·p·(dp - Σ p·dp). `gather` gives dq_t = Σ_{j≤t} dp_tj·k_j.
  softmaxBackward: {
    buffers: { p: READ, dp: WRITE },
    constants: { ...SIZES, scale: "f32" },
    rows: ({ B, H, T }) => B * H * T,
    code: `
      let at = row * u.T;
      let seen = row % u.T + 1;
      var part = 0.0;
      for (var j = lane; j < seen; j += LANES) { part += p[at + j] * dp[at + j]; }
      let mean = sumOfLanes(lane, part);
      for (var j = lane; j < seen; j += LANES) { dp[at + j] = u.scale * p[at + j] * (dp[at + j] - mean); }`,
  },

  // Last y_j = Σ_{t≥j} p_tj·x_t, over all heads of queries that share this one: dk from dp and q, dv from p and g. Each
  // thread collects its own sum. If threads scattered, as kernels.c does, they would collide.
  collect: {
    buffers: { p: READ, x: READ, y: WRITE },
    constants: { ...SIZES, strideX: "u32", atX: "u32", strideY: "u32", atY: "u32" },
    threads: ({ B, T, K, D }) => B * T * K * D,
    code: `
      let c = i % u.D;
      let key = i / u.D % u.K;
      let n = i / (u.D * u.K);
      let j = n % u.T;
      let first = n - j; // this sequence's first token
      let each = u.H / u.K;
      var sum = 0.0;
      for (var h = key * each; h < (key + 1) * each; h++) {
        let square = (first / u.T * u.H + h) * u.T * u.T; // where p (T, T) of this head begins
        let query = u.atX + h * u.D + c;
        for (var t = j; t < u.T; t++) { sum += p[square + t * u.T + j] * x[(first + t) * u.strideX + query]; }
      }
      y[n * u.strideY + u.atY + key * u.D + c] = sum;`,
  },

  // ---- GELU: y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) --------------------------------------------------------
  gelu: {
    buffers: { x: READ4, y: WRITE4 },
    constants: { m4: "u32" },
    threads: ({ m4 }) => m4,
    code: `
      let a = x[i];
      y[i] = 0.5 * a * (1.0 + tanh4(0.7978845608 * (a + 0.044715 * a * a * a)));`,
  },

  // Backward: g, the gradient at y, becomes that at x: g·(½·(1 + t) + ½·x·(1 - t²)·u'), for t = tanh(u).
  geluBackward: {
    buffers: { x: READ4, g: WRITE4 },
    constants: { m4: "u32" },
    threads: ({ m4 }) => m4,
    code: `
      let a = x[i];
      let t = tanh4(0.7978845608 * (a + 0.044715 * a * a * a));
      let du = 0.7978845608 * (1.0 + 3.0 * 0.044715 * a * a);
      g[i] *= 0.5 * (1.0 + t) + 0.5 * a * (1.0 - t * t) * du;`,
  },

  // ---- SwiGLU: f = a·σ(a)·b, for a the gate --------------------------------------------------------------------
  swiglu: {
    buffers: { a: READ4, b: READ4, f: WRITE4 },
    constants: { m4: "u32" },
    threads: ({ m4 }) => m4,
    code: "f[i] = a[i] * sigmoid4(a[i]) * b[i];",
  },

  // Backward: a and b become the gradients at a and b, for the gradient g at f.
  swigluBackward: {
    buffers: { g: READ4, a: WRITE4, b: WRITE4 },
    constants: { m4: "u32" },
    threads: ({ m4 }) => m4,
    code: `
      let gate = a[i];
      let s = sigmoid4(gate);
      a[i] = g[i] * b[i] * s * (1.0 + gate * (1.0 - s));
      b[i] = g[i] * gate * s;`,
  },

  // ---- The residual stream: y += x. Its backward pass is empty: the gradient passes through unchanged. -----------
  add: {
    buffers: { x: READ4, y: WRITE4 },
    constants: { m4: "u32" },
    threads: ({ m4 }) => m4,
    code: "y[i] += x[i];",
  },

  zero: {
    buffers: { x: WRITE4 },
    constants: { m4: "u32" },
    threads: ({ m4 }) => m4,
    code: "x[i] = vec4f(0.0);",
  },

  // ---- Loss: log Σ e^logit - the target's logit, for each row that has a wanted target ---------------------------
  // The logits become their gradient at once: softmax minus one at the target, divided by the number of wanted
  // targets. A target below 0 is not wanted.
  crossEntropy: {
    buffers: { targets: IDS, now: NOW, logits: WRITE, losses: WRITE },
    constants: { N: "u32", V: "u32", stride: "u32" },
    rows: ({ N }) => N,
    code: `
      let at = row * u.stride;
      let wanted = targets[row];
      if (wanted < 0) {
        for (var c = lane; c < u.stride; c += LANES) { logits[at + c] = 0.0; }
        if (lane == 0) { losses[row] = 0.0; }
        return;
      }
      let own = logits[at + u32(wanted)];
      var top = LOWEST;
      for (var c = lane; c < u.V; c += LANES) { top = max(top, logits[at + c]); }
      top = largestOfLanes(lane, top);
      var part = 0.0;
      for (var c = lane; c < u.V; c += LANES) { part += exp(logits[at + c] - top); }
      let sum = sumOfLanes(lane, part);
      for (var c = lane; c < u.V; c += LANES) {
        let p = exp(logits[at + c] - top) / sum;
        logits[at + c] = now.weight * select(p, p - 1.0, c == u32(wanted));
      }
      if (lane == 0) { losses[row] = now.weight * (log(sum) + top - own); }`,
  },

  // ---- Sums, and AdamW's step ------------------------------------------------------------------------------------
  // out[slot] = Σ x, by one workgroup.
  total: {
    buffers: { x: READ, out: WRITE },
    constants: { m: "u32", slot: "u32" },
    rows: () => 1,
    code: `
      var part = 0.0;
      for (var c = lane; c < u.m; c += LANES) { part += x[c]; }
      let sum = sumOfLanes(lane, part);
      if (lane == 0) { out[u.slot] = sum; }`,
  },

  // The sum of the squares of x, in 64 parts: Σ out = |x|².
  squares: {
    buffers: { x: READ4, out: WRITE },
    constants: { m4: "u32" },
    rows: () => LANES,
    code: `
      var part = 0.0;
      for (var c = row * LANES + lane; c < u.m4; c += LANES * LANES) { part += dot(x[c], x[c]); }
      let sum = sumOfLanes(lane, part);
      if (lane == 0) { out[row] = sum; }`,
  },

  // AdamW as in kernels.c, for the gradient g, clipped to norm 1: m and v are the running means of g and of its
  // square. numbers holds the loss and |g|². If the loss is above `most`, or one of the two is not finite, nothing
  // moves, and `good` still holds the weights of the last good loss.
  adamw: {
    buffers: { g: READ4, numbers: READ, now: NOW, w: WRITE4, m: WRITE4, v: WRITE4, good: WRITE4 },
    constants: { m4: "u32" },
    threads: ({ m4 }) => m4,
    code: `
      if (!finite(numbers[0]) || !finite(numbers[1]) || numbers[0] > now.most) { return; }
      good[i] = w[i];
      let grad = g[i] * min(1.0, 1.0 / (sqrt(numbers[1]) + 1e-6));
      let mean = m[i] + 0.1 * (grad - m[i]);
      let square = 0.999 * v[i] + 0.001 * grad * grad;
      m[i] = mean;
      v[i] = square;
      w[i] -= now.rate / now.fixM * mean / (sqrt(square) / now.fixV + 1e-8);`,
  },
};

// ---- The program around the code -----------------------------------------------------------------------------------

const COMMON = `
const LANES = ${LANES}u;
const LOWEST = -3.0e38;
struct Now { ${fields(NOW_FIELDS)} }

// Infinity and NaN have an exponent of ones. WGSL may assume that there are none, and optimise x != x away.
fn finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }

// Beyond ±10, tanh is ±1 in float32, and its exponentials may overflow.
fn tanh4(x: vec4f) -> vec4f { return tanh(clamp(x, vec4f(-10.0), vec4f(10.0))); }

fn sigmoid4(x: vec4f) -> vec4f { return 1.0 / (1.0 + exp(clamp(-x, vec4f(-80.0), vec4f(80.0)))); }
`;

// What the 64 threads of a workgroup compute together. At a barrier, each thread waits for all others.
const TOGETHER = `
var<workgroup> lanes: array<f32, ${LANES}>;
var<workgroup> eights: array<vec4f, ${LANES}>;
${["sum", "largest"].map(halved).join("\n")}

// 8 sums at once, each of 8 parts: a lane gives one part of sum number "which", and gets the whole sum.
fn sumOfEight(which: u32, part: u32, value: vec4f) -> vec4f {
  eights[8 * which + part] = value;
  workgroupBarrier();
  var sum = vec4f(0.0);
  for (var other = 0u; other < 8; other++) { sum += eights[8 * which + other]; }
  return sum;
}
`;

// The sum, or the largest, of one number from each lane: join the upper half with the lower half until one is left.
function halved(kind) {
  const [a, b] = ["lanes[lane]", "lanes[lane + most]"];
  return `
fn ${kind}OfLanes(lane: u32, value: f32) -> f32 {
  lanes[lane] = value;
  for (var most = LANES / 2; most > 0; most /= 2) {
    workgroupBarrier();
    if (lane < most) { ${a} = ${kind === "sum" ? `${a} + ${b}` : `max(${a}, ${b})`}; }
  }
  workgroupBarrier();
  let result = lanes[0];
  workgroupBarrier(); // the next sum may begin only when all have read this one
  return result;
}`;
}

function fields(types) {
  return Object.entries(types)
    .map(([name, type]) => `${name}: ${type}`)
    .join(", ");
}

// How a kernel reads four weights. float16 is stored two by two in a u32. unpack2x16float is part of every WebGPU, so
// float16 halves the memory without the optional feature "shader-f16".
function weightsCode(name, binding, half) {
  const value = half ? `vec4f(unpack2x16float(${name}[i].x), unpack2x16float(${name}[i].y))` : `${name}[i]`;
  return `@group(0) @binding(${binding}) var<storage, read> ${name}: array<${half ? "vec2u" : "vec4f"}>;
fn weight_${name}(i: u32) -> vec4f { return ${value}; }`;
}

// A kernel's whole program. `half`: whether weights are float16.
export function wgsl({ buffers, constants, threads, shared = "", code }, half) {
  const declared = Object.entries(buffers).map(([name, { type, writes }], index) => {
    const binding = index + 1;
    if (type === "weights") return weightsCode(name, binding, half);
    if (type === "now") return `@group(0) @binding(${binding}) var<uniform> now: Now;`;
    return `@group(0) @binding(${binding}) var<storage, ${writes ? "read_write" : "read"}> ${name}: array<${type}>;`;
  });
  // One dimension of a launch has at most 65535 workgroups, so a larger launch is a rectangle of them.
  const number = "group.y * groups.x + group.x";
  const [index, value] = threads ? ["i", `(${number}) * LANES + lane`] : ["row", number];
  return `${COMMON}${threads ? "" : TOGETHER}
struct Constants { ${fields({ count: "u32", ...constants })} }
@group(0) @binding(0) var<uniform> u: Constants;
${declared.join("\n")}
${shared}
@compute @workgroup_size(${LANES})
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let ${index} = ${value};
  if (${index} >= u.count) { return; }
${code}
}`;
}
