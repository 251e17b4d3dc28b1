// The arithmetic of the lab: float32, one thread, WebAssembly SIMD, which does four numbers at a time. No libc.
//
// Letters, in all functions: N rows (tokens), d inputs and k outputs of a layer, r the rank, C the model's
// width, V its vocabulary, T tokens of one sequence, H heads of D numbers each. Matrices are row after row in
// memory. Every length but N, r and T is a multiple of 8.
#include <wasm_simd128.h>

typedef v128_t vec; // four float32
#define EXPORT(name) __attribute__((export_name(#name))) extern
#define INLINE static inline __attribute__((always_inline))

#define load wasm_v128_load
#define store wasm_v128_store
#define load_same wasm_v128_load32_splat // one number, four times
#define same wasm_f32x4_splat
#define add4 wasm_f32x4_add
#define sub4 wasm_f32x4_sub
#define mul4 wasm_f32x4_mul
#define div4 wasm_f32x4_div

// a·b + c. Relaxed SIMD has one instruction for it, which not every browser knows: this file is compiled twice.
#ifdef RELAXED
#define muladd(a, b, c) wasm_f32x4_relaxed_madd(a, b, c)
#else
#define muladd(a, b, c) add4(mul4(a, b), c)
#endif

extern unsigned char __heap_base;

// Where the memory that the compiler does not need begins.
EXPORT(heap_base) int heap_base(void) {
  return (int)&__heap_base;
}

INLINE float sum_of(vec a) {
  float low = wasm_f32x4_extract_lane(a, 0) + wasm_f32x4_extract_lane(a, 1);
  float high = wasm_f32x4_extract_lane(a, 2) + wasm_f32x4_extract_lane(a, 3);
  return low + high;
}

INLINE float larger(float a, float b) {
  return a > b ? a : b;
}

INLINE float largest_of(vec a) {
  float low = larger(wasm_f32x4_extract_lane(a, 0), wasm_f32x4_extract_lane(a, 1));
  float high = larger(wasm_f32x4_extract_lane(a, 2), wasm_f32x4_extract_lane(a, 3));
  return larger(low, high);
}

// ---- Simple things ----------------------------------------------------------------------------------------

EXPORT(zero) void zero(float *x, int n) {
  for (int i = 0; i < n; i += 4) store(x + i, same(0));
}

// y += x
EXPORT(add) void add(const float *x, float *y, int n) {
  for (int i = 0; i < n; i += 4) store(y + i, add4(load(y + i), load(x + i)));
}

EXPORT(sum_of_squares) float sum_of_squares(const float *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
  return (float)sum;
}

// The model's file holds float16: 1 bit of sign, 5 of exponent, 10 of fraction.
EXPORT(half_to_float) void half_to_float(const unsigned short *half, float *x, int n) {
  for (int i = 0; i < n; i++) {
    unsigned sign = (half[i] & 0x8000u) << 16;
    unsigned exponent = (half[i] >> 10) & 31;
    unsigned fraction = half[i] & 1023;
    union {
      unsigned bits;
      float value;
    } out;
    if (exponent == 0) { // too small for a leading 1: fraction · 2^-24
      out.value = (float)fraction * 0x1p-24f;
      out.bits |= sign;
    } else {
      unsigned wide = exponent == 31 ? 255 : exponent + 112; // 31 is infinity or not a number
      out.bits = sign | (wide << 23) | (fraction << 13);
    }
    x[i] = out.value;
  }
}

// ---- The large product ------------------------------------------------------------------------------------
// A weight is read in panels of 8 columns: what is needed next always lies next in memory.

// W (d, k) to panels (k/8, d, 8).
EXPORT(pack) void pack(const float *W, float *panels, int d, int k) {
  for (int column = 0; column < k; column += 8) {
    for (int i = 0; i < d; i++, panels += 8) {
      store(panels, load(W + i * k + column));
      store(panels + 4, load(W + i * k + column + 4));
    }
  }
}

// The same of W transposed, (k, d): panels (d/8, k, 8).
EXPORT(pack_transposed) void pack_transposed(const float *W, float *panels, int d, int k) {
  for (int column = 0; column < d; column += 8) {
    for (int j = 0; j < k; j++, panels += 8) {
      for (int c = 0; c < 8; c++) panels[c] = W[(column + c) * k + j];
    }
  }
}

// One tile of the product: `rows` rows of x times inputs first … last of one panel, to rows × 8 numbers of y.
// Called with a constant number of rows, so that the compiler keeps all sums in registers.
INLINE void tile(int rows, const float *x, int d, const float *panel, int first, int last, const float *bias,
    float *y, int k, int onto) {
  vec left[6], right[6];
  for (int n = 0; n < rows; n++) {
    left[n] = onto ? load(y + n * k) : bias ? load(bias) : same(0);
    right[n] = onto ? load(y + n * k + 4) : bias ? load(bias + 4) : same(0);
  }
#pragma clang loop unroll_count(4) // a third of the time less in Chromium
  for (int i = first; i < last; i++) {
    vec w_left = load(panel + i * 8), w_right = load(panel + i * 8 + 4);
    for (int n = 0; n < rows; n++) {
      vec x_i = load_same(x + n * d + i);
      left[n] = muladd(x_i, w_left, left[n]);
      right[n] = muladd(x_i, w_right, right[n]);
    }
  }
  for (int n = 0; n < rows; n++) {
    store(y + n * k, left[n]);
    store(y + n * k + 4, right[n]);
  }
}

// One row of x, as when a text is written token by token: four panels at a time keep the adders busy.
INLINE void one_row(const float *x, int d, const float *panels, int k, const float *bias, float *y) {
  int column = 0;
  for (; column + 32 <= k; column += 32) {
    const float *panel = panels + column * d;
    vec sum[8];
    for (int c = 0; c < 8; c++) sum[c] = bias ? load(bias + column + 4 * c) : same(0);
    for (int i = 0; i < d; i++) {
      vec x_i = load_same(x + i);
      for (int c = 0; c < 8; c++) {
        vec w = load(panel + (c / 2) * 8 * d + i * 8 + (c % 2) * 4);
        sum[c] = muladd(x_i, w, sum[c]);
      }
    }
    for (int c = 0; c < 8; c++) store(y + column + 4 * c, sum[c]);
  }
  for (; column < k; column += 8) {
    tile(1, x, d, panels + column * d, 0, d, bias ? bias + column : 0, y + column, k, 0);
  }
}

// y = x·W + bias: x (N, d), W (d, k) in panels, bias (k) or none, y (N, k).
EXPORT(matmul)
void matmul(const float *x, int N, int d, const float *panels, int k, const float *bias, float *y) {
  const int stretch = 640; // inputs at a time: that much of a panel, 20 kB, stays in the nearest cache
  if (N == 1) {
    one_row(x, d, panels, k, bias, y);
    return;
  }
  for (int column = 0; column < k; column += 8) {
    const float *panel = panels + column * d, *b = bias ? bias + column : 0;
    for (int first = 0; first < d; first += stretch) {
      int last = first + stretch < d ? first + stretch : d, n = 0;
      for (; n + 6 <= N; n += 6)
        tile(6, x + n * d, d, panel, first, last, b, y + n * k + column, k, first > 0);
      for (; n + 2 <= N; n += 2)
        tile(2, x + n * d, d, panel, first, last, b, y + n * k + column, k, first > 0);
      for (; n < N; n++) tile(1, x + n * d, d, panel, first, last, b, y + n * k + column, k, first > 0);
    }
  }
}

// ---- The thin products of LoRA ----------------------------------------------------------------------------
// Three of them make its forward and its backward pass. M is A or B with one row for each of the r directions:
// A transposed, (r, d), and B as it is, (r, k). Below, m is the length of such a row.

// c (N, r) = s · x·Mᵀ, for x (N, m).
EXPORT(project) void project(const float *x, int N, int m, const float *M, int r, float s, float *c) {
  for (int n = 0; n < N; n++, x += m, c += r) {
    int j = 0;
    for (; j + 4 <= r; j += 4) { // four directions at a time: x is loaded once for all
      const float *row = M + j * m;
      vec sum0 = same(0), sum1 = same(0), sum2 = same(0), sum3 = same(0);
      for (int i = 0; i < m; i += 4) {
        vec x_i = load(x + i);
        sum0 = muladd(x_i, load(row + i), sum0);
        sum1 = muladd(x_i, load(row + m + i), sum1);
        sum2 = muladd(x_i, load(row + 2 * m + i), sum2);
        sum3 = muladd(x_i, load(row + 3 * m + i), sum3);
      }
      c[j] = s * sum_of(sum0);
      c[j + 1] = s * sum_of(sum1);
      c[j + 2] = s * sum_of(sum2);
      c[j + 3] = s * sum_of(sum3);
    }
    for (; j < r; j++) {
      vec sum = same(0);
      for (int i = 0; i < m; i += 4) sum = muladd(load(x + i), load(M + j * m + i), sum);
      c[j] = s * sum_of(sum);
    }
  }
}

// y (N, m) += s · c·M, for c (N, r).
EXPORT(expand) void expand(const float *c, int N, int r, const float *M, int m, float s, float *y) {
  for (int n = 0; n < N; n++, c += r, y += m) {
    int j = 0;
    for (; j + 4 <= r; j += 4) {
      const float *row = M + j * m;
      vec c0 = same(s * c[j]), c1 = same(s * c[j + 1]), c2 = same(s * c[j + 2]), c3 = same(s * c[j + 3]);
      for (int i = 0; i < m; i += 4) {
        vec sum = muladd(c0, load(row + i), load(y + i));
        sum = muladd(c1, load(row + m + i), sum);
        sum = muladd(c2, load(row + 2 * m + i), sum);
        store(y + i, muladd(c3, load(row + 3 * m + i), sum));
      }
    }
    for (; j < r; j++) {
      vec c_j = same(s * c[j]);
      for (int i = 0; i < m; i += 4) store(y + i, muladd(c_j, load(M + j * m + i), load(y + i)));
    }
  }
}

// G (r, m) += s · cᵀ·g, for c (N, r) and g (N, m).
EXPORT(outer) void outer(const float *c, int N, int r, const float *g, int m, float s, float *G) {
  int n = 0;
  for (; n + 4 <= N; n += 4) { // four tokens at a time: G is loaded once for all
    const float *g0 = g + n * m, *c_n = c + n * r;
    for (int j = 0; j < r; j++) {
      float *row = G + j * m;
      vec c0 = same(s * c_n[j]), c1 = same(s * c_n[r + j]);
      vec c2 = same(s * c_n[2 * r + j]), c3 = same(s * c_n[3 * r + j]);
      for (int i = 0; i < m; i += 4) {
        vec sum = muladd(c0, load(g0 + i), load(row + i));
        sum = muladd(c1, load(g0 + m + i), sum);
        sum = muladd(c2, load(g0 + 2 * m + i), sum);
        store(row + i, muladd(c3, load(g0 + 3 * m + i), sum));
      }
    }
  }
  for (; n < N; n++) {
    for (int j = 0; j < r; j++) {
      vec c_j = same(s * c[n * r + j]);
      for (int i = 0; i < m; i += 4)
        store(G + j * m + i, muladd(c_j, load(g + n * m + i), load(G + j * m + i)));
    }
  }
}

// ---- GELU -------------------------------------------------------------------------------------------------

// e^x of four numbers: x = n·ln 2 + rest, a polynomial for the rest (the coefficients are Cephes'), n as
// exponent.
INLINE vec exp4(vec x) {
  x = wasm_f32x4_max(wasm_f32x4_min(x, same(88)), same(-87));
  vec n = wasm_f32x4_nearest(mul4(x, same(1.44269504088896341f)));
  x = sub4(x, mul4(n, same(0.693359375f))); // ln 2 in two parts, for more digits than one float has
  x = sub4(x, mul4(n, same(-2.12194440e-4f)));
  vec p = same(1.9875691500e-4f);
  p = add4(mul4(p, x), same(1.3981999507e-3f));
  p = add4(mul4(p, x), same(8.3334519073e-3f));
  p = add4(mul4(p, x), same(4.1665795894e-2f));
  p = add4(mul4(p, x), same(1.6666665459e-1f));
  p = add4(mul4(p, x), same(5.0000001201e-1f));
  vec rest = add4(add4(mul4(p, mul4(x, x)), x), same(1));
  vec power = wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127)), 23);
  return mul4(rest, power);
}

// tanh(u) = 1 - 2 / (e^2u + 1)
INLINE vec tanh4(vec u) {
  return sub4(same(1), div4(same(2), add4(exp4(add4(u, u)), same(1))));
}

#define GELU_ROOT same(0.7978845608028654f) // √(2/π)
#define GELU_CUBE same(0.044715f)

// y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
EXPORT(gelu) void gelu(const float *x, float *y, int n) {
  for (int i = 0; i < n; i += 4) {
    vec a = load(x + i);
    vec u = mul4(GELU_ROOT, muladd(mul4(GELU_CUBE, mul4(a, a)), a, a));
    vec half = mul4(same(.5f), a);
    store(y + i, muladd(half, tanh4(u), half));
  }
}

// g, the gradient at y, becomes the gradient at x.
EXPORT(gelu_backward) void gelu_backward(const float *x, float *g, int n) {
  for (int i = 0; i < n; i += 4) {
    vec a = load(x + i), square = mul4(a, a);
    vec t = tanh4(mul4(GELU_ROOT, muladd(mul4(GELU_CUBE, square), a, a)));
    vec du = mul4(GELU_ROOT, muladd(mul4(same(3), GELU_CUBE), square, same(1)));
    vec dt = mul4(sub4(same(1), mul4(t, t)), du);
    vec slope = muladd(mul4(same(.5f), a), dt, muladd(same(.5f), t, same(.5f)));
    store(g + i, mul4(load(g + i), slope));
  }
}

// ---- LayerNorm --------------------------------------------------------------------------------------------

// y = (x - mean) / deviation · w + b, row by row. Keeps each row's mean and 1 / deviation for the way back.
EXPORT(norm) void norm(const float *x, int N, int C, const float *w, const float *b, float *y, float *kept) {
  for (int n = 0; n < N; n++, x += C, y += C, kept += 2) {
    vec sum = same(0), squares = same(0);
    for (int i = 0; i < C; i += 4) sum = add4(sum, load(x + i));
    vec mean = same(sum_of(sum) / C);
    for (int i = 0; i < C; i += 4) {
      vec off = sub4(load(x + i), mean);
      squares = muladd(off, off, squares);
    }
    float inverse = 1 / __builtin_sqrtf(sum_of(squares) / C + 1e-5f);
    for (int i = 0; i < C; i += 4) {
      vec normal = mul4(sub4(load(x + i), mean), same(inverse));
      store(y + i, muladd(normal, load(w + i), load(b + i)));
    }
    kept[0] = wasm_f32x4_extract_lane(mean, 0);
    kept[1] = inverse;
  }
}

// dx += the gradient at x, for the gradient g at y; w is frozen.
EXPORT(norm_backward)
void norm_backward(
    const float *x, int N, int C, const float *w, const float *kept, const float *g, float *dx) {
  for (int n = 0; n < N; n++, x += C, g += C, dx += C, kept += 2) {
    vec mean = same(kept[0]), inverse = same(kept[1]), sum = same(0), along = same(0);
    for (int i = 0; i < C; i += 4) {
      vec dnormal = mul4(load(g + i), load(w + i));
      sum = add4(sum, dnormal);
      along = muladd(dnormal, mul4(sub4(load(x + i), mean), inverse), along);
    }
    vec mean_of_g = same(sum_of(sum) / C), mean_along = same(sum_of(along) / C);
    for (int i = 0; i < C; i += 4) {
      vec normal = mul4(sub4(load(x + i), mean), inverse);
      vec d = sub4(sub4(mul4(load(g + i), load(w + i)), mean_of_g), mul4(normal, mean_along));
      store(dx + i, muladd(inverse, d, load(dx + i)));
    }
  }
}

// ---- Attention --------------------------------------------------------------------------------------------

INLINE float dot(const float *a, const float *b, int n) {
  vec sum = same(0);
  for (int i = 0; i < n; i += 4) sum = muladd(load(a + i), load(b + i), sum);
  return sum_of(sum);
}

// y += c·x
INLINE void add_times(float c, const float *x, float *y, int n) {
  for (int i = 0; i < n; i += 4) store(y + i, muladd(same(c), load(x + i), load(y + i)));
}

// One sequence: T new tokens after `past` earlier ones. qkv (past + T, 3·C) holds query, key and value of
// each token, y (T, C) takes what the new tokens gather. p (H, T, L) keeps the probabilities, L = past + T
// rounded up to 4.
EXPORT(attention) void attention(const float *qkv, int T, int past, int H, int D, float *p, float *y) {
  int C = H * D, row = 3 * C, L = (past + T + 3) & ~3;
  float scale = 1 / __builtin_sqrtf((float)D);
  for (int h = 0; h < H; h++) {
    const float *keys = qkv + C + h * D, *values = qkv + 2 * C + h * D;
    for (int t = 0; t < T; t++, p += L) {
      const float *query = qkv + (past + t) * row + h * D;
      int seen = past + t + 1; // itself and all before it
      float top = -1e30f;
      for (int j = 0; j < seen; j++) {
        p[j] = scale * dot(query, keys + j * row, D);
        top = larger(top, p[j]);
      }
      for (int j = seen; j < L; j++) p[j] = -1e30f;
      vec sum = same(0);
      for (int j = 0; j < seen; j += 4) {
        vec e = exp4(sub4(load(p + j), same(top)));
        store(p + j, e);
        sum = add4(sum, e);
      }
      float inverse = 1 / sum_of(sum), *out = y + t * C + h * D;
      zero(out, D);
      for (int j = 0; j < L; j++) p[j] = j < seen ? p[j] * inverse : 0;
      for (int j = 0; j < seen; j++) add_times(p[j], values + j * row, out, D);
    }
  }
}

// dqkv (T, 3·C) += the gradient at qkv, for the gradient g (T, C) at y; no past. `dp` is room for T numbers.
EXPORT(attention_backward)
void attention_backward(
    const float *qkv, const float *p, const float *g, int T, int H, int D, float *dqkv, float *dp) {
  int C = H * D, row = 3 * C, L = (T + 3) & ~3;
  float scale = 1 / __builtin_sqrtf((float)D);
  for (int h = 0; h < H; h++) {
    const float *queries = qkv + h * D, *keys = queries + C, *values = keys + C;
    float *dqueries = dqkv + h * D, *dkeys = dqueries + C, *dvalues = dkeys + C;
    for (int t = 0; t < T; t++, p += L) {
      const float *g_t = g + t * C + h * D;
      float mean = 0; // of dp, weighted by p
      for (int j = 0; j <= t; j++) {
        dp[j] = dot(g_t, values + j * row, D);
        mean += dp[j] * p[j];
        add_times(p[j], g_t, dvalues + j * row, D);
      }
      for (int j = 0; j <= t; j++) {
        float dscore = scale * p[j] * (dp[j] - mean);
        add_times(dscore, keys + j * row, dqueries + t * row, D);
        add_times(dscore, queries + t * row, dkeys + j * row, D);
      }
    }
  }
}

// ---- Loss and update --------------------------------------------------------------------------------------

// The loss of row n is log(sum) + gap, with sum = Σ e^(logit - top) and gap = top - the target's logit: kept
// (N, 2) takes the two. logits (N, V) become `weight` times their gradient, softmax minus one at the target.
// A target below 0 is not wanted.
EXPORT(cross_entropy)
void cross_entropy(float *logits, const int *target, int N, int V, float weight, float *kept) {
  for (int n = 0; n < N; n++, logits += V, kept += 2) {
    if (target[n] < 0) {
      zero(logits, V);
      kept[0] = 1; // log 1 + 0 is no loss
      kept[1] = 0;
      continue;
    }
    vec high = load(logits), sum = same(0);
    for (int i = 4; i < V; i += 4) high = wasm_f32x4_max(high, load(logits + i));
    float top = largest_of(high);
    kept[1] = top - logits[target[n]];
    for (int i = 0; i < V; i += 4) {
      vec e = exp4(sub4(load(logits + i), same(top)));
      store(logits + i, e);
      sum = add4(sum, e);
    }
    kept[0] = sum_of(sum);
    vec share = same(weight / kept[0]);
    for (int i = 0; i < V; i += 4) store(logits + i, mul4(load(logits + i), share));
    logits[target[n]] -= weight;
  }
}

// AdamW as PyTorch has it, betas 0.9 and 0.999, eps 1e-8, no decay, for the gradient g·clip.
// m and v are the running means of the gradient and of its square, `fix_m` and `fix_v` make up for their
// start at 0: 1 - 0.9^t and √(1 - 0.999^t) at step t.
EXPORT(adamw)
void adamw(
    float *w, const float *g, float *m, float *v, int n, float rate, float fix_m, float fix_v, float clip) {
  for (int i = 0; i < n; i += 4) {
    vec grad = mul4(load(g + i), same(clip));
    vec mean = add4(load(m + i), mul4(same(0.1f), sub4(grad, load(m + i))));
    vec square = add4(mul4(same(0.999f), load(v + i)), mul4(same(0.001f), mul4(grad, grad)));
    vec root = add4(div4(wasm_f32x4_sqrt(square), same(fix_v)), same(1e-8f));
    store(m + i, mean);
    store(v + i, square);
    store(w + i, sub4(load(w + i), div4(mul4(same(rate / fix_m), mean), root)));
  }
}
