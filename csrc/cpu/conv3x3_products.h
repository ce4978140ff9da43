// Register-blocked products that every convolution is made of. No include guard: MCT_ISA names the copy.

namespace mct::MCT_ISA {

constexpr int CB = 2 * VL;                          // columns of a register block, and of a packed panel
constexpr int RMAX = MCT_VL == 16 ? 12 : 6;         // rows of a register block: 2 * RMAX sums and room for operands
constexpr int64_t kRoom = 64;                       // floats between regions of a workspace, against cache aliasing

MCT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
MCT_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
MCT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
MCT_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Rows [first, first + count) of `total`, cut into `parts` nearly equal parts.
MCT_INLINE int64_t part_begin(int64_t total, int64_t parts, int64_t i) { return total * i / parts; }

// One stretch of the summed dimension: rows of `a` have the common stride lda, `b` is a packed panel [k][CB].
// While it is worked on, one cache line for each k is fetched from `ahead` on (any address is allowed).
struct Stretch {
  const float* a;
  const float* b;
  const float* ahead;
};

// A stretch of one panel among others: the panel after it is fetched ahead.
MCT_INLINE Stretch panel_stretch(const float* a, const float* b, int64_t k) { return {a, b, b + k * CB}; }

// Products added up in one register before it goes into the total: one float32 sum over all of 128 channels would carry
// more rounding error than Winograd's transforms do.
constexpr int64_t kRun = 32;

// c[r][0..CB) = bias + sum over stretches and k of a[r][k] * b[k][:], for R rows. Only the first `columns` are stored.
// With `streaming`, full rows are stored past the caches.
template <int R>
static __attribute__((noinline)) void product_rows(const Stretch* stretch, int stretches, int64_t lda, int64_t k,
                                                   float* c, int64_t ldc, const float* bias, int64_t columns,
                                                   bool streaming) {
  vf acc[R][2];
  {
    const vf b0 = bias == nullptr ? vf{} : load(bias), b1 = bias == nullptr ? vf{} : load(bias + VL);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r][0] = b0, acc[r][1] = b1;
  }
  vf total[R][2];
  int64_t summed = 0;
  bool flushed = false;
  const int64_t lda2 = 2 * lda, lda3 = 3 * lda;
  for (int s = 0; s < stretches; ++s) {
    const float* q0 = stretch[s].a;
    const float* q1 = q0 + (R > 4 ? 4 * lda : 0);
    const float* q2 = q0 + (R > 8 ? 8 * lda : 0);
    const float* b = stretch[s].b;
    const float* const last = b + k * CB;
    const float* ahead = stretch[s].ahead;
    while (b != last) {
      if (summed >= kRun) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < 2; ++v) total[r][v] = flushed ? total[r][v] + acc[r][v] : acc[r][v], acc[r][v] = vf{};
        }
        flushed = true;
        summed = 0;
      }
      const int64_t run = least((last - b) / CB, kRun - summed);
      const float* const end = b + run * CB;
      summed += run;
      while (b != end) {
        const vf b0 = load(b), b1 = load(b + VL);
        __builtin_prefetch(ahead);
        ahead += 16;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const float* q = r < 4 ? q0 : r < 8 ? q1 : q2;
          const int64_t at = (r & 3) == 0 ? 0 : (r & 3) == 1 ? lda : (r & 3) == 2 ? lda2 : lda3;
          const vf a = splat(q[at]);
          acc[r][0] += a * b0;
          acc[r][1] += a * b1;
        }
        ++q0;
        if (R > 4) ++q1;
        if (R > 8) ++q2;
        b += CB;
      }
    }
  }
  if (flushed) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r][0] += total[r][0], acc[r][1] += total[r][1];
  }
  if (streaming && columns >= CB) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      stream(c + r * ldc, acc[r][0]);
      stream(c + r * ldc + VL, acc[r][1]);
    }
    return;
  }
  if (columns >= CB) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      store(c + r * ldc, acc[r][0]);
      store(c + r * ldc + VL, acc[r][1]);
    }
    return;
  }
  for (int r = 0; r < R; ++r) {
    store_first(c + r * ldc, acc[r][0], columns);
    if (columns > VL) store_first(c + r * ldc + VL, acc[r][1], columns - VL);
  }
}

// c[r][0..CB) (+)= sum over stretches and k of a[k][r] * b[k][:], for R rows, a[k] at a + k * lda. Stretch t starts at
// a + t * a_next and b + t * b_next. One cache line for each k is fetched from `ahead` on (any address is allowed).
template <int R>
static __attribute__((noinline)) void product_outer(const float* a, int64_t lda, int64_t a_next, const float* b,
                                                    int64_t ldb, int64_t b_next, int64_t stretches, int64_t k, float* c,
                                                    bool add, const float* ahead) {
  vf acc[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r][0] = vf{}, acc[r][1] = vf{};
  for (int64_t s = 0; s < stretches; ++s) {
    const float* q = a + s * a_next;
    const float* p = b + s * b_next;
    for (int64_t i = 0; i < k; ++i) {
      const vf b0 = load(p), b1 = load(p + VL);
      __builtin_prefetch(ahead, 0, 2);
      ahead += 16;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const vf v = splat(q[r]);
        acc[r][0] += v * b0;
        acc[r][1] += v * b1;
      }
      q += lda;
      p += ldb;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* out = c + r * CB;
    if (add) {
      acc[r][0] += load(out);
      acc[r][1] += load(out + VL);
    }
    store(out, acc[r][0]);
    store(out + VL, acc[r][1]);
  }
}

#if MCT_VL == 16
#define MCT_ROWS(name)                                                                                             \
  {nullptr, name<1>, name<2>, name<3>, name<4>, name<5>, name<6>, name<7>, name<8>, name<9>, name<10>, name<11>, \
   name<12>}
#else
#define MCT_ROWS(name) {nullptr, name<1>, name<2>, name<3>, name<4>, name<5>, name<6>}
#endif

using ProductRows = void (*)(const Stretch*, int, int64_t, int64_t, float*, int64_t, const float*, int64_t, bool);
using ProductOuter = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, int64_t, int64_t, float*,
                              bool, const float*);
constexpr ProductRows kProductRows[RMAX + 1] = MCT_ROWS(product_rows);
constexpr ProductOuter kProductOuter[RMAX + 1] = MCT_ROWS(product_outer);

#undef MCT_ROWS

// Any number of rows, in nearly equal register blocks.
MCT_INLINE void product(const Stretch* stretch, int stretches, int64_t rows, int64_t lda, int64_t k, float* c,
                        int64_t ldc, const float* bias, int64_t columns, bool streaming = false) {
  const int64_t parts = ceil_div(rows, RMAX);
  Stretch s[3];
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t r0 = part_begin(rows, parts, i), r1 = part_begin(rows, parts, i + 1);
    for (int j = 0; j < stretches; ++j) {
      s[j] = {stretch[j].a + r0 * lda, stretch[j].b, stretch[j].ahead + i * k * 16};
    }
    kProductRows[r1 - r0](s, stretches, lda, k, c + r0 * ldc, ldc, bias, columns, streaming);
  }
}

// Whether an output of this many floats a pixel is stored past the caches: when it is too large to stay in them for the
// next reader, and every row starts on a cache line. Plain stores would first read what they overwrite.
MCT_INLINE bool worth_streaming(const float* out, int64_t pixels, int64_t channels) {
  return pixels * channels >= (int64_t{1} << 20) && channels % CB == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

// Zeroes or copies n floats.
MCT_INLINE void clear(float* p, int64_t n) { memset(p, 0, static_cast<size_t>(n) * sizeof(float)); }
MCT_INLINE void copy(float* to, const float* from, int64_t n) {
  memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace mct::MCT_ISA
