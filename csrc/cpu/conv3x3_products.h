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


#if MCT_X86_KERNELS && MCT_VL == 16
// product_rows for whole panels, no bias and k a multiple of 4, to the same bits, in assembler: four steps of k at once, and a
// run's sums go straight into c. GCC 12 spills registers where product_rows is unrolled, and its form above takes a tenth
// longer. A row's sums are two of zmm0 .. zmm23, b's vectors are zmm24 and zmm25; rows beyond R are left out.
#define MCT_ROW(r, low, high, from, by, a)                                \
  ".if %c[R] > " #r "\n"                                                  \
  "vbroadcastss " from ", %%zmm" #a "\n"                                  \
  "vfmadd231ps %%zmm" #a ", %%zmm24, %%zmm" #low "\n"                     \
  "vfmadd231ps %%zmm" #a ", %%zmm25, %%zmm" #high "\n"                    \
  ".endif\n"
#define MCT_ROWS4(at, q, r0, r1, r2, r3, s0, s1, s2, s3, s4, s5, s6, s7)  \
  MCT_ROW(r0, s0, s1, at "(%[" q "])", 0, 26)                             \
  MCT_ROW(r1, s2, s3, at "(%[" q "],%[lda])", 1, 27)                      \
  MCT_ROW(r2, s4, s5, at "(%[" q "],%[lda],2)", 2, 28)                    \
  MCT_ROW(r3, s6, s7, at "(%[" q "],%[lda3])", 3, 29)
#define MCT_STEP(at, b0, b1, line)                                        \
  "vmovups " b0 "(%[b]), %%zmm24\n"                                       \
  "vmovups " b1 "(%[b]), %%zmm25\n"                                       \
  "prefetcht1 " line "(%[ahead])\n"                                             \
  MCT_ROWS4(at, "q0", 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7)                 \
  MCT_ROWS4(at, "q1", 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)           \
  MCT_ROWS4(at, "q2", 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23)
#define MCT_CLEAR(r, low, high)                                           \
  ".if %c[R] > " #r "\n"                                                  \
  "vxorps %%xmm" #low ", %%xmm" #low ", %%xmm" #low "\n"                  \
  "vxorps %%xmm" #high ", %%xmm" #high ", %%xmm" #high "\n"               \
  ".endif\n"
#define MCT_ADD(r, low, high)                                             \
  ".if %c[R] > " #r "\n"                                                  \
  "vaddps (%[c]), %%zmm" #low ", %%zmm" #low "\n"                         \
  "vaddps 64(%[c]), %%zmm" #high ", %%zmm" #high "\n"                     \
  "add %[ldc], %[c]\n"                                                    \
  ".endif\n"
#define MCT_PUT(r, low, high)                                             \
  ".if %c[R] > " #r "\n"                                                  \
  "vmovups %%zmm" #low ", (%[c])\n"                                       \
  "vmovups %%zmm" #high ", 64(%[c])\n"                                    \
  "add %[ldc], %[c]\n"                                                    \
  ".endif\n"
#define MCT_EACH_ROW(what)                                                \
  what(0, 0, 1) what(1, 2, 3) what(2, 4, 5) what(3, 6, 7) what(4, 8, 9) what(5, 10, 11) what(6, 12, 13)  \
  what(7, 14, 15) what(8, 16, 17) what(9, 18, 19) what(10, 20, 21) what(11, 22, 23)

// One run of 4 * fours products: c (+)= their sum.
template <int R>
MCT_INLINE void product_run(const float* q0, int64_t lda, const float* b, int64_t fours, float* c, int64_t ldc, bool add,
                            const float* ahead) {
  const float* q1 = q0 + 4 * lda;
  const float* q2 = q0 + 8 * lda;
  float* to = c;
  asm volatile(
      MCT_EACH_ROW(MCT_CLEAR)
      ".p2align 5\n"
      "0:\n"
      MCT_STEP("0", "0", "64", "0")
      MCT_STEP("4", "128", "192", "64")
      MCT_STEP("8", "256", "320", "128")
      MCT_STEP("12", "384", "448", "192")
      "add $16, %[q0]\n"
      "add $16, %[q1]\n"
      "add $16, %[q2]\n"
      "add $512, %[b]\n"
      "add $256, %[ahead]\n"
      "dec %[fours]\n"
      "jnz 0b\n"
      "test %[add], %[add]\n"
      "je 1f\n"
      MCT_EACH_ROW(MCT_ADD)
      "mov %[start], %[c]\n"
      "1:\n"
      MCT_EACH_ROW(MCT_PUT)
      : [q0] "+r"(q0), [q1] "+r"(q1), [q2] "+r"(q2), [b] "+r"(b), [ahead] "+r"(ahead), [fours] "+r"(fours), [c] "+r"(to)
      : [lda] "r"(lda * 4), [lda3] "r"(lda * 12), [ldc] "r"(ldc * 4), [add] "r"(static_cast<int>(add)), [start] "m"(c), [R] "i"(R)
      : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
        "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29");
}

template <int R>
static __attribute__((noinline)) void product_panel(const Stretch* stretch, int stretches, int64_t lda, int64_t k, float* c,
                                                    int64_t ldc) {
  for (int s = 0; s < stretches; ++s) {
    for (int64_t at = 0; at < k; at += kRun) {
      product_run<R>(stretch[s].a + at, lda, stretch[s].b + at * CB, least(kRun, k - at) / 4, c, ldc, s > 0 || at > 0,
                     stretch[s].ahead + at * 16);
    }
  }
}

using ProductPanel = void (*)(const Stretch*, int, int64_t, int64_t, float*, int64_t);

#undef MCT_ROW
#undef MCT_ROWS4
#undef MCT_STEP
#undef MCT_CLEAR
#undef MCT_ADD
#undef MCT_PUT
#undef MCT_EACH_ROW
#endif

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
#if MCT_X86_KERNELS && MCT_VL == 16
constexpr ProductPanel kProductPanel[RMAX + 1] = MCT_ROWS(product_panel);
#endif

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
#if MCT_X86_KERNELS && MCT_VL == 16
    if (bias == nullptr && columns >= CB && !streaming && k % 4 == 0) {
      kProductPanel[r1 - r0](s, stretches, lda, k, c + r0 * ldc, ldc);
      continue;
    }
#endif
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
