// Small matrix products with a fixed order of summation, in one instruction set (see simd.h and units.h).

namespace mct::MCT_ISA {

// One tile of products_nt: R x C dot products, their sums kept in vectors.
template <class T, int R, int C>
void tile_nt(int64_t F, const Factors<T>& x, int64_t lda, int64_t ldb, T* out, int64_t ldo) {
  constexpr int L = Pack<T>::lanes;
  V<T> acc[R][C] = {};
  const T* as[2] = {x.a1, x.a2};
  const T* bs[2] = {x.b1, x.b2};
  for (int pair = 0; pair < 2 && as[pair] != nullptr; ++pair) {
    const T* a = as[pair];
    const T* b = bs[pair];
    int64_t f = 0;
    for (; f + L <= F; f += L) {
      V<T> bv[C];
      MCT_UNROLL for (int c = 0; c < C; ++c) bv[c] = load(b + c * ldb + f);
      MCT_UNROLL for (int r = 0; r < R; ++r) {
        const V<T> av = load(a + r * lda + f);
        MCT_UNROLL for (int c = 0; c < C; ++c) acc[r][c] += av * bv[c];
      }
    }
    if (f < F) {
      MCT_UNROLL for (int r = 0; r < R; ++r) {
        const V<T> av = load<true>(a + r * lda + f, F - f);
        MCT_UNROLL for (int c = 0; c < C; ++c) acc[r][c] += av * load<true>(b + c * ldb + f, F - f);
      }
    }
  }
  MCT_UNROLL for (int r = 0; r < R; ++r) {
    MCT_UNROLL for (int c = 0; c < C; ++c) out[r * ldo + c] = sum<T>(acc[r][c]);
  }
}

template <class T>
MCT_INLINE Factors<T> moved(const Factors<T>& x, int64_t a, int64_t b) {
  if (x.a2 == nullptr) return {x.a1 + a, x.b1 + b, nullptr, nullptr};
  return {x.a1 + a, x.b1 + b, x.a2 + a, x.b2 + b};
}

// Columns outside, so that four rows of b stay in the caches while a's rows pass by.
template <class T>
void products_nt(int64_t rows, int64_t cols, int64_t F, const Factors<T>& x, int64_t lda, int64_t ldb, T* out,
                 int64_t ldo) {
  for (int64_t c = 0; c < cols;) {
    const bool four = c + 4 <= cols;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      const Factors<T> at = moved(x, r * lda, c * ldb);
      T* to = out + r * ldo + c;
      four ? tile_nt<T, 4, 4>(F, at, lda, ldb, to, ldo) : tile_nt<T, 4, 1>(F, at, lda, ldb, to, ldo);
    }
    for (; r < rows; ++r) {
      const Factors<T> at = moved(x, r * lda, c * ldb);
      T* to = out + r * ldo + c;
      four ? tile_nt<T, 1, 4>(F, at, lda, ldb, to, ldo) : tile_nt<T, 1, 1>(F, at, lda, ldb, to, ldo);
    }
    c += four ? 4 : 1;
  }
}

// One tile of products_nn: R rows; `panel` has K rows of kPanelBytes. Adds to `out` unless it is fresh.
constexpr int64_t kPanelBytes = 256;

template <class T, int R>
void tile_nn(int64_t n, int64_t K, const T* a, int64_t a_row, int64_t a_k, const T* panel, bool fresh, T* out,
             int64_t ldo) {
  constexpr int L = Pack<T>::lanes, width = kPanelBytes / sizeof(T), C = width / L < 4 ? width / L : 4;
  for (int64_t f = 0; f < n; f += C * L) {
    V<T> acc[R][C] = {};
    const T* b = panel + f;
    const T* ak = a;
    for (int64_t k = 0; k < K; ++k, ak += a_k, b += width) {
      V<T> bv[C];
      MCT_UNROLL for (int c = 0; c < C; ++c) bv[c] = load(b + c * L);
      MCT_UNROLL for (int r = 0; r < R; ++r) {
        const V<T> av = splat(ak[r * a_row]);
        MCT_UNROLL for (int c = 0; c < C; ++c) acc[r][c] += av * bv[c];
      }
    }
    MCT_UNROLL for (int r = 0; r < R; ++r) {
      MCT_UNROLL for (int c = 0; c < C; ++c) {
        const int64_t left = n - f - c * L;
        if (left <= 0) continue;
        T* to = out + r * ldo + f + c * L;
        if (left >= L) {
          store(to, fresh ? acc[r][c] : load(to) + acc[r][c]);
        } else {
          store<true>(to, fresh ? acc[r][c] : load<true>(to, left) + acc[r][c], left);
        }
      }
    }
  }
}

// b's rows lie a power of two apart, as a rule, and would fight for the same lines of the cache: a panel of kPanelBytes
// columns and kDepth rows is copied together first. Sums over more rows than that are added part by part.
template <class T>
void products_nn(int64_t rows, int64_t cols, int64_t K, const Factors<T>& x, int64_t a_row, int64_t a_k, int64_t ldb,
                 T* out, int64_t ldo) {
  constexpr int64_t width = kPanelBytes / sizeof(T), kDepth = 128;
  alignas(64) T panel[kDepth * width];
  for (int64_t f = 0; f < cols; f += width) {
    const int64_t n = cols - f < width ? cols - f : width;
    bool fresh = true;
    for (int pair = 0; pair < 2; ++pair) {
      const T* a = pair == 0 ? x.a1 : x.a2;
      const T* b = pair == 0 ? x.b1 : x.b2;
      if (a == nullptr) continue;
      for (int64_t k = 0; k < K; k += kDepth) {
        const int64_t depth = K - k < kDepth ? K - k : kDepth;
        for (int64_t i = 0; i < depth; ++i) {
          const T* from = b + (k + i) * ldb + f;
          for (int64_t c = 0; c < n; ++c) panel[i * width + c] = from[c];
          for (int64_t c = n; c < width; ++c) panel[i * width + c] = 0;
        }
        const T* ak = a + k * a_k;
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) tile_nn<T, 4>(n, depth, ak + r * a_row, a_row, a_k, panel, fresh, out + r * ldo + f, ldo);
        for (; r < rows; ++r) tile_nn<T, 1>(n, depth, ak + r * a_row, a_row, a_k, panel, fresh, out + r * ldo + f, ldo);
        fresh = false;
      }
    }
  }
}

}  // namespace mct::MCT_ISA
