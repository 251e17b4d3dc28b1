// The arithmetic of the lab: float32, one thread, WebAssembly SIMD, which does four numbers at a time. No libc.
//
// Notation, in all functions: N rows (tokens), d inputs and k outputs of a layer, r the rank, C the model's
// width, V its vocabulary, T tokens of one sequence, H heads of D numbers each. Matrices are stored row by row.
// d, k and C are multiples of 8, D of 4; N, r, T and V may be any number.
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

// a·b + c. Relaxed SIMD has one instruction for it, but not every browser knows it: this file is compiled twice,
// and the page takes the build that its browser accepts. The last bits of a result depend on the build and, with
// RELAXED, on the processor; on one machine they are always the same.
#ifdef RELAXED
#define muladd(a, b, c) wasm_f32x4_relaxed_madd(a, b, c)
#else
#define muladd(a, b, c) add4(mul4(a, b), c)
#endif

extern unsigned char __heap_base;

// Where free memory begins.
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

// ---- Helpers ---------------------------------------------------------------------------------------------

EXPORT(zero) void zero(float *x, int n) {
  for (int i = 0; i < n; i += 4) store(x + i, same(0));
}

// y += x
EXPORT(add) void add(const float *x, float *y, int n) {
  for (int i = 0; i < n; i += 4) store(y + i, add4(load(y + i), load(x + i)));
}

// y *= x
EXPORT(multiply) void multiply(const float *x, float *y, int n) {
  for (int i = 0; i < n; i += 4) store(y + i, mul4(load(y + i), load(x + i)));
}

EXPORT(sum_of_squares) float sum_of_squares(const float *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
  return (float)sum;
}

// ---- Weights from files -----------------------------------------------------------------------------------
union bits {
  unsigned bits;
  float value;
};

// float16: 1 bit of sign, 5 of exponent, 10 of fraction.
EXPORT(half_to_float) void half_to_float(const unsigned short *half, float *x, int n) {
  for (int i = 0; i < n; i++) {
    unsigned sign = (half[i] & 0x8000u) << 16;
    unsigned exponent = (half[i] >> 10) & 31;
    unsigned fraction = half[i] & 1023;
    union bits out;
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

// bfloat16 is the upper half of a float32.
EXPORT(bfloat_to_float) void bfloat_to_float(const unsigned short *upper, float *x, int n) {
  for (int i = 0; i < n; i++) {
    union bits out = {.bits = (unsigned)upper[i] << 16};
    x[i] = out.value;
  }
}

// ---- Weights in memory ------------------------------------------------------------------------------------
// A weight W (d, k) is kept once, in panels of 8 columns, (k/8, d, 8): what x·W needs next always lies next in
// memory, and g·Wᵀ reads blocks of 8 by 8. Eight numbers of a row are 8 float32, or, with `packed`, 4 words of
// 32 bits: the first four numbers in the lower 16 bits, the last four in the upper 16.
//
// The 16 bits hold w·2^8 as float16. The factor keeps small weights away from the lower end of float16. Weights
// above 255 do not fit; `found` reports them.

#define LARGEST 255.0f

// Round to the nearest float16, ties to even. |w| is at most LARGEST.
INLINE unsigned to_half(float w) {
  union bits in = {.value = w * 256};
  unsigned sign = (in.bits >> 16) & 0x8000u;
  in.bits &= 0x7fffffffu;
  if (in.bits < 0x38800000u) { // below 2^-14: float32's own rounding at 0.5 is that of float16 there
    in.value += 0.5f;
    return sign | (in.bits - 0x3f000000u);
  }
  in.bits += 0xfffu + ((in.bits >> 13) & 1);
  return sign | ((in.bits - 0x38000000u) >> 13);
}

// Two float16 in a word. Shifted right by 3 bits, a half's exponent lies in the lowest 5 bits of a float32's exponent.
// To get its value, multiply by 2^112, and by 2^-8 for the factor above.
#define SCALE(packed) same(packed ? 0x1p104f : 1)
#define half_bits(x) wasm_v128_and(wasm_i32x4_shr(x, 3), wasm_i32x4_splat((int)0x8fffe000))

// Eight numbers of panels, counted in eights, still without SCALE.
INLINE void load_unscaled(const float *panels, int packed, int at, vec *left, vec *right) {
  if (packed) {
    vec words = load(panels + 4 * at);
    *left = half_bits(wasm_i32x4_shl(words, 16));
    *right = half_bits(words);
  } else {
    *left = load(panels + 8 * at);
    *right = load(panels + 8 * at + 4);
  }
}

INLINE void load_eight(const float *panels, int packed, int at, vec *left, vec *right) {
  load_unscaled(panels, packed, at, left, right);
  if (packed) *left = mul4(*left, SCALE(1)), *right = mul4(*right, SCALE(1));
}

// What `pack` reports about the weights: the largest, and the largest error of their 16 bits.
struct found {
  float largest, error;
};

INLINE float distance(float a, float b) {
  return a > b ? a - b : b - a;
}

INLINE void store_eight(const float *w, int stride, float *panels, int packed, int at, struct found *found) {
  float eight[8], back[8];
  for (int c = 0; c < 8; c++) {
    float size = distance(w[c * stride], 0);
    if (found->largest == found->largest && !(size <= found->largest)) found->largest = size; // NaN stays
    eight[c] = w[c * stride];
  }
  if (!packed) {
    for (int c = 0; c < 8; c++) panels[8 * at + c] = eight[c];
    return;
  }
  if (!(found->largest <= LARGEST)) return;
  unsigned *words = (unsigned *)panels + 4 * at;
  for (int c = 0; c < 4; c++) words[c] = to_half(eight[c]) | to_half(eight[c + 4]) << 16;
  vec left, right;
  load_eight(panels, 1, at, &left, &right);
  store(back, left);
  store(back + 4, right);
  for (int c = 0; c < 8; c++) found->error = larger(found->error, distance(eight[c], back[c]));
}

// `rows` rows of W (d, k), from row `first` on, into its panels.
EXPORT(pack)
void pack(const float *W, int first, int rows, int d, int k, int packed, float *panels, struct found *found) {
  for (int i = 0; i < rows; i++) {
    for (int column = 0; column < k; column += 8)
      store_eight(W + i * k + column, 1, panels, packed, column / 8 * d + first + i, found);
  }
}

// The same for W stored by columns, Wᵀ (k, d): columns `first` to `first + columns`. `first` is a multiple of 8; if
// `columns` is not, zeros fill the panel.
EXPORT(pack_columns)
void pack_columns(float *W, int first, int columns, int d, int packed, float *panels, struct found *found) {
  for (int column = columns; column & 7; column++) zero(W + column * d, d);
  for (int column = 0; column < columns; column += 8) {
    for (int i = 0; i < d; i++)
      store_eight(W + column * d + i, d, panels, packed, (first + column) / 8 * d + i, found);
  }
}

// x (T, C) = each token's column of the embedding, in panels, plus its place's row of `places`, if there are any.
EXPORT(embed)
void embed(const int *ids, int T, int C, const float *panels, int packed, const float *places, float *x) {
  for (int t = 0; t < T; t++) {
    for (int i = 0; i < C; i++, x++) {
      float eight[8];
      vec left, right;
      load_eight(panels, packed, ids[t] / 8 * C + i, &left, &right);
      store(eight, left);
      store(eight + 4, right);
      *x = eight[ids[t] & 7] + (places ? places[t * C + i] : 0);
    }
  }
}

// ---- Tiles ------------------------------------------------------------------------------------------------
// A product is computed in tiles: pieces of the result whose sums stay in registers while the loop runs. Chromium has
// 15 registers: six rows of 8 columns take 12 for sums, 2 for w and 1 for x. Without RELAXED, a·b takes another one.
#ifdef RELAXED
#define ROWS 6
#else
#define ROWS 5
#endif

// Two values that the compiler must have in registers at this point. Otherwise it changes the order of a tile's
// additions, has all rows of x in registers at once, and has too few.
#define HERE(a, b) asm volatile("" : "+r"(a), "+r"(b))

INLINE int smaller(int a, int b) {
  return a < b ? a : b;
}

// y (rows, columns) = start + x·w: x (rows, count) by columns, w (count, columns), 4 or 8 columns. The columns of x and
// the rows of w, start and y are `x_right`, `w_down`, `start_down` and `y_down` numbers apart.
INLINE void tile_of(int rows, int columns, const float *x, int x_right, int count, const float *w, int w_down,
    const float *start, int start_down, float *y, int y_down) {
  int last = columns - 4; // where the right half begins; of four columns, both halves are the same
  vec left[ROWS], right[ROWS];
  for (int n = 0; n < rows; n++) {
    left[n] = load(start + n * start_down);
    right[n] = load(start + n * start_down + last);
  }
#pragma clang loop unroll(disable)
  for (int i = 0; i < count; i++, x += x_right, w += w_down) {
    HERE(x, w);
    vec w_left = load(w), w_right = load(w + last);
    for (int n = 0; n < rows; n++) {
      vec x_n = load_same(x + n);
      left[n] = muladd(x_n, w_left, left[n]);
      right[n] = muladd(x_n, w_right, right[n]);
      HERE(left[n], right[n]);
    }
  }
  for (int n = 0; n < rows; n++) {
    store(y + n * y_down, left[n]);
    store(y + n * y_down + last, right[n]);
  }
}

#define TILE_OF(rows, columns)                                                                               \
  tile_of(rows, columns, x, x_right, count, w, w_down, start, start_down, y, y_down)

// The same for at most ROWS rows and 8 columns. Each number of rows has a separate loop.
static __attribute__((noinline)) void tile(int rows, int columns, const float *x, int x_right, int count,
    const float *w, int w_down, const float *start, int start_down, float *y, int y_down) {
  if (columns < 8)
    for (; rows > 0; rows--, x++, start += start_down, y += y_down) TILE_OF(1, 4);
  else if (rows == ROWS)
    TILE_OF(ROWS, 8);
  else if (rows == 1)
    TILE_OF(1, 8);
  else if (rows == 2)
    TILE_OF(2, 8);
  else if (rows == 3)
    TILE_OF(3, 8);
  else if (rows == 4)
    TILE_OF(4, 8);
  else
    TILE_OF(5, 8);
}

// x (rows, count), whose rows are `down` apart, by columns, as a tile needs it: `count` columns of ROWS numbers. The
// last row fills them up.
INLINE void gather(const float *x, int down, int rows, int count, float *columns) {
  const float *row[ROWS];
  for (int n = 0; n < ROWS; n++) row[n] = x + smaller(n, rows - 1) * down;
  for (int i = 0; i < count; i++)
    for (int n = 0; n < ROWS; n++) *columns++ = row[n][i];
}

// ---- The large products -----------------------------------------------------------------------------------
// What the loops use again and again stays in the caches: two pieces of panels, 40 kB, in the nearest, and the piece of
// x that was gathered, 660 kB, in the second.

#define STRETCH 640                    // inputs at a time
#define WIDE 16                        // columns at a time
#define MOST ((256 / ROWS + 1) * ROWS) // rows at a time

#define APART 8 // panels at a time, for one row of x

static const float zeros[WIDE];

// One row of x times `count` panels, the first of which is number `panel`, and each `apart` panels after the one before.
INLINE void panels_of_one(int count, int apart, const float *x, int d, const float *panels, int packed,
    int panel, const float *bias, float *y) {
  vec left[APART], right[APART];
  for (int c = 0; c < count; c++) left[c] = right[c] = same(0);
  for (int i = 0; i < d; i++) {
    vec x_i = mul4(load_same(x + i), SCALE(packed));
    for (int c = 0; c < count; c++) {
      vec w_left, w_right;
      load_unscaled(panels, packed, (panel + c * apart) * d + i, &w_left, &w_right);
      left[c] = muladd(x_i, w_left, left[c]);
      right[c] = muladd(x_i, w_right, right[c]);
    }
  }
  for (int c = 0; c < count; c++) {
    int column = 8 * (panel + c * apart);
    store(y + column, add4(left[c], bias ? load(bias + column) : same(0)));
    store(y + column + 4, add4(right[c], bias ? load(bias + column + 4) : same(0)));
  }
}

// One row of x, as when a text is written token by token. All that takes time is to read W from memory: a processor
// reads several places at once faster than one.
INLINE void one_row(
    const float *x, int d, const float *panels, int packed, int k, const float *bias, float *y) {
  int each = k / 8 / APART, panel = 0;
  for (; panel < each; panel++) panels_of_one(APART, each, x, d, panels, packed, panel, bias, y);
  for (panel = APART * each; panel < k / 8; panel++)
    panels_of_one(1, 0, x, d, panels, packed, panel, bias, y);
}

// Four vectors as the rows of a matrix, transposed, to rows of 8 numbers.
INLINE void store_transposed(vec a, vec b, vec c, vec d, float *out) {
  vec ab_low = wasm_i32x4_shuffle(a, b, 0, 4, 1, 5), ab_high = wasm_i32x4_shuffle(a, b, 2, 6, 3, 7);
  vec cd_low = wasm_i32x4_shuffle(c, d, 0, 4, 1, 5), cd_high = wasm_i32x4_shuffle(c, d, 2, 6, 3, 7);
  store(out, wasm_i64x2_shuffle(ab_low, cd_low, 0, 2));
  store(out + 8, wasm_i64x2_shuffle(ab_low, cd_low, 1, 3));
  store(out + 16, wasm_i64x2_shuffle(ab_high, cd_high, 0, 2));
  store(out + 24, wasm_i64x2_shuffle(ab_high, cd_high, 1, 3));
}

// A block of 8 by 8 of the panels, from number `at` in eights on, transposed.
INLINE void transpose_block(const float *panels, int packed, int at, float *out) {
  for (int half = 0; half < 8; half += 4) {
    vec left[4], right[4];
    for (int i = 0; i < 4; i++) load_eight(panels, packed, at + half + i, left + i, right + i);
    store_transposed(left[0], left[1], left[2], left[3], out + half);
    store_transposed(right[0], right[1], right[2], right[3], out + 32 + half);
  }
}

// W (count, 8) as float32: from row `first` and column `column` on, of W (d, k) in panels, or, `transposed`, of Wᵀ.
INLINE void unpack(
    const float *panels, int packed, int d, int transposed, int first, int column, int count, float *out) {
  if (transposed) {
    for (int i = 0; i < count; i += 8)
      transpose_block(panels, packed, (first + i) / 8 * d + column, out + 8 * i);
  } else {
    for (int i = 0; i < count; i++) {
      vec left, right;
      load_eight(panels, packed, column / 8 * d + first + i, &left, &right);
      store(out + 8 * i, left);
      store(out + 8 * i + 4, right);
    }
  }
}

// y (N, k) = bias + x·W for W (d, k) in panels; or, `transposed`, for the panels of Wᵀ (k, d). bias may be none.
INLINE void product(const float *x, int N, int d, const float *panels, int packed, int transposed, int k,
    const float *bias, float *y) {
  float groups[MOST * STRETCH], room[WIDE * STRETCH]; // x in groups of ROWS rows, W in panels
  for (; N > 0; N -= MOST, x += MOST * d, y += MOST * k) {
    int rows = smaller(N, MOST);
    for (int first = 0; first < d; first += STRETCH) {
      int count = smaller(STRETCH, d - first);
      for (int n = 0; n < rows; n += ROWS) gather(x + n * d + first, d, rows - n, count, groups + n * count);
      for (int column = 0; column < k; column += WIDE) {
        int columns = smaller(WIDE, k - column), down = first ? k : 0;
        const float *start = first ? y + column : bias ? bias + column : zeros;
        for (int j = 0; j < columns; j += 8)
          unpack(panels, packed, transposed ? k : d, transposed, first, column + j, count, room + j * count);
        for (int n = 0; n < rows; n += ROWS) {
          for (int j = 0; j < columns; j += 8)
            tile(smaller(ROWS, rows - n), 8, groups + n * count, ROWS, count, room + j * count, 8,
                start + n * down + j, down, y + n * k + column + j, k);
        }
      }
    }
  }
}

// y = x·W + bias: x (N, d), W (d, k) in panels, bias (k) or none, y (N, k).
EXPORT(matmul)
void matmul(
    const float *x, int N, int d, const float *panels, int packed, int k, const float *bias, float *y) {
  if (N == 1 && packed)
    one_row(x, d, panels, 1, k, bias, y);
  else if (N == 1)
    one_row(x, d, panels, 0, k, bias, y);
  else
    product(x, N, d, panels, packed, 0, k, bias, y);
}

// dx = g·Wᵀ: g (N, k), W (d, k) in panels, dx (N, d).
EXPORT(matmul_transposed)
void matmul_transposed(const float *g, int N, int k, const float *panels, int packed, int d, float *dx) {
  product(g, N, k, panels, packed, 1, d, 0, dx);
}

// ---- The thin products of LoRA ----------------------------------------------------------------------------
// Three of them make its forward and its backward pass. M is A or B with one row for each of the r directions:
// A transposed, (r, d), and B as it is, (r, k). Below, m is the length of such a row. Attention is made of the same
// three, with other matrices, whose rows lie further apart: `down` numbers.

struct rows {
  float *at;
  int down;
};

INLINE struct rows row(struct rows x, int n) {
  return (struct rows){x.at + n * x.down, x.down};
}

// Four sums over all lanes.
INLINE vec sums_of(vec a, vec b, vec c, vec d) {
  vec ab = add4(wasm_i32x4_shuffle(a, b, 0, 1, 4, 5), wasm_i32x4_shuffle(a, b, 2, 3, 6, 7));
  vec cd = add4(wasm_i32x4_shuffle(c, d, 0, 1, 4, 5), wasm_i32x4_shuffle(c, d, 2, 3, 6, 7));
  return add4(wasm_i32x4_shuffle(ab, cd, 0, 2, 4, 6), wasm_i32x4_shuffle(ab, cd, 1, 3, 5, 7));
}

// A tile of c = s·x·Mᵀ: `rows` rows of x, 1 or 2, times `directions` rows of M, 1 or 4.
INLINE void dots(int rows, int directions, struct rows x, int m, struct rows M, float s, struct rows c) {
  vec sum[2][4];
  for (int n = 0; n < 2; n++)
    for (int j = 0; j < 4; j++) sum[n][j] = same(0);
  for (int i = 0; i < m; i += 4) {
    for (int j = 0; j < directions; j++) {
      vec M_j = load(row(M, j).at + i);
      for (int n = 0; n < rows; n++) sum[n][j] = muladd(load(row(x, n).at + i), M_j, sum[n][j]);
    }
  }
  for (int n = 0; n < rows; n++) {
    vec four = mul4(same(s), sums_of(sum[n][0], sum[n][1], sum[n][2], sum[n][3]));
    if (directions == 4)
      store(row(c, n).at, four);
    else
      *row(c, n).at = wasm_f32x4_extract_lane(four, 0);
  }
}

// c (N, r) = s · x·Mᵀ, for x (N, m).
static void times_transposed(struct rows x, int N, int m, struct rows M, int r, float s, struct rows c) {
  for (; N > 0; N -= 2, x = row(x, 2), c = row(c, 2)) {
    struct rows M_j = M, c_j = c;
    int left = r;
    for (; left >= 4; left -= 4, M_j = row(M_j, 4), c_j.at += 4) {
      if (N > 1)
        dots(2, 4, x, m, M_j, s, c_j);
      else
        dots(1, 4, x, m, M_j, s, c_j);
    }
    for (; left > 0; left--, M_j = row(M_j, 1), c_j.at++) {
      if (N > 1)
        dots(2, 1, x, m, M_j, s, c_j);
      else
        dots(1, 1, x, m, M_j, s, c_j);
    }
  }
}

// y (N, m) += c·M, for c (N, r).
static void add_times(struct rows c, int N, int r, struct rows M, int m, struct rows y) {
  float columns[ROWS * STRETCH];
  for (int first = 0; first < r; first += STRETCH) {
    int count = smaller(STRETCH, r - first);
    for (int n = 0; n < N; n += ROWS) {
      int rows = smaller(ROWS, N - n);
      gather(row(c, n).at + first, c.down, rows, count, columns);
      for (int j = 0; j < m; j += 8) {
        float *y_j = row(y, n).at + j;
        tile(rows, smaller(8, m - j), columns, ROWS, count, row(M, first).at + j, M.down, y_j, y.down, y_j,
            y.down);
      }
    }
  }
}

#define BLOCK 64 // rows at a time, so that c stays in the nearest cache, too

// G (r, m) += cᵀ·g, for c (N, r) and g (N, m).
static void add_transposed_times(struct rows c, int N, int r, struct rows g, int m, struct rows G) {
  float strip[WIDE * BLOCK]; // columns of g, next to each other
  for (; N > 0; N -= BLOCK, c = row(c, BLOCK), g = row(g, BLOCK)) {
    int count = smaller(BLOCK, N);
    for (int first = 0; first < m; first += WIDE) {
      int columns = smaller(WIDE, m - first);
      for (int n = 0; n < count; n++)
        for (int i = 0; i < columns; i += 4) store(strip + n * WIDE + i, load(row(g, n).at + first + i));
      for (int j = 0, rows; j < r; j += rows) {
        int groups = (r - j + ROWS - 1) / ROWS;
        rows = (r - j + groups - 1) / groups;
        for (int i = 0; i < columns; i += 8) {
          float *G_j = row(G, j).at + first + i;
          tile(rows, smaller(8, columns - i), c.at + j, c.down, count, strip + i, WIDE, G_j, G.down, G_j,
              G.down);
        }
      }
    }
  }
}

// c (N, r) = s · x·Mᵀ, for x (N, m).
EXPORT(project) void project(float *x, int N, int m, float *M, int r, float s, float *c) {
  times_transposed((struct rows){x, m}, N, m, (struct rows){M, m}, r, s, (struct rows){c, r});
}

// y (N, m) += c·M, for c (N, r).
EXPORT(expand) void expand(float *c, int N, int r, float *M, int m, float *y) {
  add_times((struct rows){c, r}, N, r, (struct rows){M, m}, m, (struct rows){y, m});
}

// G (r, m) += cᵀ·g, for c (N, r) and g (N, m).
EXPORT(outer) void outer(float *c, int N, int r, float *g, int m, float *G) {
  add_transposed_times((struct rows){c, r}, N, r, (struct rows){g, m}, m, (struct rows){G, m});
}

// ---- GELU -------------------------------------------------------------------------------------------------

// e^x of four numbers: x = n·ln 2 + rest, a polynomial for the rest (the coefficients are Cephes'), n as exponent.
// A float of 1.5·2^23 + n is rounded to whole numbers, and its lowest bits are n.
INLINE vec exp4(vec x) {
  x = wasm_f32x4_pmax(wasm_f32x4_pmin(x, same(88)), same(-87));
  vec shifted = muladd(x, same(1.44269504088896341f), same(0x1.8p23f)), n = sub4(shifted, same(0x1.8p23f));
  x = muladd(n, same(-0.693359375f), x); // ln 2 in two parts, for more digits than one float has
  x = muladd(n, same(2.12194440e-4f), x);
  vec p = same(1.9875691500e-4f);
  p = muladd(p, x, same(1.3981999507e-3f));
  p = muladd(p, x, same(8.3334519073e-3f));
  p = muladd(p, x, same(4.1665795894e-2f));
  p = muladd(p, x, same(1.6666665459e-1f));
  p = muladd(p, x, same(5.0000001201e-1f));
  vec rest = add4(muladd(p, mul4(x, x), x), same(1));
  return wasm_i32x4_add(rest, wasm_i32x4_shl(shifted, 23)); // into the exponent: rest·2^n
}

// tanh(u) = 1 - 2 / (e^2u + 1)
INLINE vec tanh4(vec u) {
  return sub4(same(1), div4(same(2), add4(exp4(add4(u, u)), same(1))));
}

#define GELU_ROOT same(0.7978845608028654f) // √(2/π)
#define GELU_CUBE same(0.044715f)

// y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))). x becomes the slope dy/dx: the backward pass needs nothing else.
EXPORT(gelu) void gelu(float *x, float *y, int n) {
  for (int i = 0; i < n; i += 4) {
    vec a = load(x + i), square = mul4(a, a), half = mul4(same(.5f), a);
    vec t = tanh4(mul4(GELU_ROOT, muladd(mul4(GELU_CUBE, square), a, a)));
    vec du = mul4(GELU_ROOT, muladd(mul4(same(3), GELU_CUBE), square, same(1)));
    vec dt = mul4(sub4(same(1), mul4(t, t)), du);
    store(y + i, muladd(half, t, half));
    store(x + i, muladd(half, dt, muladd(same(.5f), t, same(.5f))));
  }
}

// ---- LayerNorm --------------------------------------------------------------------------------------------

// y = (x - mean) / deviation · w + b, row by row. Keeps each row's mean and 1 / deviation for the backward pass.
EXPORT(norm)
void norm(
    const float *x, int N, int C, const float *w, const float *b, float epsilon, float *y, float *kept) {
  for (int n = 0; n < N; n++, x += C, y += C, kept += 2) {
    vec sum = same(0), squares = same(0);
    for (int i = 0; i < C; i += 4) sum = add4(sum, load(x + i));
    vec mean = same(sum_of(sum) / C);
    for (int i = 0; i < C; i += 4) {
      vec off = sub4(load(x + i), mean);
      squares = muladd(off, off, squares);
    }
    float inverse = 1 / __builtin_sqrtf(sum_of(squares) / C + epsilon);
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

// The n numbers x become e^(x - top), where top is the largest of them; those after them, up to L, become 0. Returns
// their sum. n is at least 1, L a multiple of 4.
INLINE float exponentials(float *x, int n, int L, float *top) {
  for (int i = n; i < L; i++) x[i] = -1e30f;
  int end = (n + 3) & ~3;
  vec high = load(x), sum = same(0);
  for (int i = 4; i < end; i += 4) high = wasm_f32x4_pmax(high, load(x + i));
  *top = largest_of(high);
  for (int i = 0; i < end; i += 4) {
    vec e = exp4(sub4(load(x + i), same(*top)));
    store(x + i, e);
    sum = add4(sum, e);
  }
  for (int i = n; i < L; i++) x[i] = 0;
  return sum_of(sum);
}

INLINE void scale(float *x, float s, int n) {
  for (int i = 0; i < n; i += 4) store(x + i, mul4(same(s), load(x + i)));
}

// A query sees only keys up to its own. So a few queries at a time are multiplied with the keys that they may see.
#define QUERIES 16

// The keys and values that a few queries see lie in two parts: `past` earlier tokens' at the beginning, and the queries'
// own sequence's from row `own` on. Columns of p are in the same order, without what lies between.
struct part {
  int row, column, count;
};

INLINE struct rows from_column(struct rows x, int first) {
  return (struct rows){x.at + first, x.down};
}

// One sequence: T new tokens after `past` earlier ones. q (T, H·D) are the new tokens' queries; k and v have rows of K·D
// numbers, K heads, each for H/K heads of queries. A row of q begins q_step numbers after the one before, a row of k or v
// kv_step. y (T, H·D) takes what the new tokens gather. p (H, T, L) keeps the probabilities, L = past + T rounded up to 4.
EXPORT(attention)
void attention(float *q, int q_step, float *k, float *v, int kv_step, int past, int own, int T, int H, int K,
    int D, float *p, float *y) {
  int L = (past + T + 3) & ~3;
  zero(y, T * H * D);
  for (int h = 0; h < H; h++, p += T * L) {
    int shared = h * K / H * D;
    struct rows queries = {q + h * D, q_step}, keys = {k + shared, kv_step}, values = {v + shared, kv_step};
    struct rows shares = {p, L}, out = {y + h * D, H * D};
    for (int first = 0; first < T; first += QUERIES) {
      int count = smaller(QUERIES, T - first);
      struct rows some = row(shares, first);
      struct part parts[2] = {{0, 0, past}, {own, past, first + count}};
      for (struct part *i = past ? parts : parts + 1; i < parts + 2; i++)
        times_transposed(row(queries, first), count, D, row(keys, i->row), i->count,
            1 / __builtin_sqrtf((float)D), from_column(some, i->column));
      for (int t = 0; t < count; t++) {
        float *share = row(some, t).at, top; // of all tokens up to its own
        scale(share, 1 / exponentials(share, past + first + t + 1, L, &top), L);
      }
      for (struct part *i = past ? parts : parts + 1; i < parts + 2; i++)
        add_times(from_column(some, i->column), count, i->count, row(values, i->row), D, row(out, first));
    }
  }
}

// The gradient at the probabilities p of one query becomes the gradient at its scores.
INLINE void scores_backward(const float *p, float *dp, int seen, int D) {
  float mean = 0, s = 1 / __builtin_sqrtf((float)D); // the mean of dp, weighted by p
  for (int j = 0; j < seen; j++) mean += p[j] * dp[j];
  for (int j = 0; j < seen; j++) dp[j] = s * p[j] * (dp[j] - mean);
}

// dq, dk and dv += the gradients, for the gradient g (T, H·D) at y. Their rows lie as those of q, k and v. What heads
// share adds up, and so does what sequences with the same past do. `room` is for QUERIES rows of p.
EXPORT(attention_backward)
void attention_backward(float *q, int q_step, float *k, float *v, int kv_step, int past, int own, int T,
    int H, int K, int D, float *p, float *g, float *dq, float *dk, float *dv, float *room) {
  int L = (past + T + 3) & ~3;
  for (int h = 0; h < H; h++, p += T * L) {
    int shared = h * K / H * D;
    struct rows queries = {q + h * D, q_step}, dqueries = {dq + h * D, q_step};
    struct rows keys = {k + shared, kv_step}, dkeys = {dk + shared, kv_step};
    struct rows values = {v + shared, kv_step}, dvalues = {dv + shared, kv_step};
    for (int first = 0; first < T; first += QUERIES) {
      int count = smaller(QUERIES, T - first);
      struct rows share = {p + first * L, L}, dshare = {room, L}, g_some = {g + (first * H + h) * D, H * D};
      struct part parts[2] = {{0, 0, past}, {own, past, first + count}};
      for (struct part *i = past ? parts : parts + 1; i < parts + 2; i++) {
        times_transposed(g_some, count, D, row(values, i->row), i->count, 1, from_column(dshare, i->column));
        add_transposed_times(from_column(share, i->column), count, i->count, g_some, D, row(dvalues, i->row));
      }
      for (int t = 0; t < count; t++)
        scores_backward(row(share, t).at, row(dshare, t).at, past + first + count, D);
      for (struct part *i = past ? parts : parts + 1; i < parts + 2; i++) {
        struct rows dsome = from_column(dshare, i->column);
        add_times(dsome, count, i->count, row(keys, i->row), D, row(dqueries, first));
        add_transposed_times(dsome, count, i->count, row(queries, first), D, row(dkeys, i->row));
      }
    }
  }
}

// ---- What a Llama has instead of LayerNorm, positions and GELU ----------------------------------------------

// y = x / √(mean(x²) + epsilon) · w, row by row. Keeps each row's 1 / √ for the backward pass.
EXPORT(rms_norm)
void rms_norm(const float *x, int N, int C, const float *w, float epsilon, float *y, float *kept) {
  for (int n = 0; n < N; n++, x += C, y += C) {
    vec squares = same(0);
    for (int i = 0; i < C; i += 4) squares = muladd(load(x + i), load(x + i), squares);
    kept[n] = 1 / __builtin_sqrtf(sum_of(squares) / C + epsilon);
    for (int i = 0; i < C; i += 4) store(y + i, mul4(mul4(load(x + i), same(kept[n])), load(w + i)));
  }
}

// dx += the gradient at x, for the gradient g at y; w is frozen.
EXPORT(rms_norm_backward)
void rms_norm_backward(
    const float *x, int N, int C, const float *w, const float *kept, const float *g, float *dx) {
  for (int n = 0; n < N; n++, x += C, g += C, dx += C) {
    vec inverse = same(kept[n]), along = same(0);
    for (int i = 0; i < C; i += 4)
      along = muladd(mul4(load(g + i), load(w + i)), mul4(load(x + i), inverse), along);
    vec mean_along = same(sum_of(along) / C);
    for (int i = 0; i < C; i += 4) {
      vec normal = mul4(load(x + i), inverse);
      vec d = sub4(mul4(load(g + i), load(w + i)), mul4(normal, mean_along));
      store(dx + i, muladd(inverse, d, load(dx + i)));
    }
  }
}

// Positions. Numbers c and c + D/2 of each of the heads of x (T, heads·D) turn by the angle of the token's place, `past`
// for the first. `table` (context, D) holds D/2 cosines and D/2 sines for each place. `sign` -1 turns back: the backward
// pass. D is a multiple of 8.
EXPORT(rope)
void rope(float *x, int T, int past, int heads, int D, const float *table, float sign) {
  int half = D / 2;
  for (int t = 0; t < T; t++) {
    const float *turn = table + (past + t) * D;
    for (int h = 0; h < heads; h++, x += D) {
      for (int c = 0; c < half; c += 4) {
        vec a = load(x + c), b = load(x + half + c), cosine = load(turn + c);
        vec sine = mul4(same(sign), load(turn + half + c));
        store(x + c, sub4(mul4(a, cosine), mul4(b, sine)));
        store(x + half + c, muladd(b, cosine, mul4(a, sine)));
      }
    }
  }
}

INLINE vec sigmoid4(vec a) {
  return div4(same(1), add4(same(1), exp4(sub4(same(0), a))));
}

// f = silu(a)·b, with silu(a) = a / (1 + e^-a)
EXPORT(swiglu) void swiglu(const float *a, const float *b, float *f, int n) {
  for (int i = 0; i < n; i += 4) {
    vec gate = load(a + i);
    store(f + i, mul4(mul4(gate, sigmoid4(gate)), load(b + i)));
  }
}

// a and b become the gradients at a and b, for the gradient g at f.
EXPORT(swiglu_backward) void swiglu_backward(const float *g, float *a, float *b, int n) {
  for (int i = 0; i < n; i += 4) {
    vec gate = load(a + i), s = sigmoid4(gate), d = load(g + i);
    vec slope = mul4(s, muladd(gate, sub4(same(1), s), same(1)));
    store(a + i, mul4(mul4(d, load(b + i)), slope));
    store(b + i, mul4(d, mul4(gate, s)));
  }
}

// ---- Loss and update --------------------------------------------------------------------------------------

// The loss of row n is log(sum) + gap, with sum = Σ e^(logit - top) and gap = top - the target's logit: kept
// (N, 2) takes the two. logits (N, L) become `weight` times their gradient, softmax minus one at the target. L is V
// rounded up to 8; what is beyond V counts for nothing.
EXPORT(cross_entropy)
void cross_entropy(float *logits, const int *target, int N, int V, float weight, float *kept) {
  int L = (V + 7) & ~7;
  for (int n = 0; n < N; n++, logits += L, kept += 2) {
    float wanted = logits[target[n]], top;
    kept[0] = exponentials(logits, V, L, &top);
    kept[1] = top - wanted;
    scale(logits, weight / kept[0], L);
    logits[target[n]] -= weight;
  }
}

// PyTorch's AdamW with betas 0.9 and 0.999, eps 1e-8 and no decay, for the gradient g·clip. m and v are the
// running means of the gradient and of its square; `fix_m` and `fix_v` correct their start at 0: 1 - 0.9^t and
// √(1 - 0.999^t) at step t.
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
