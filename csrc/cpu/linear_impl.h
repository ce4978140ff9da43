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
      for (int c = 0; c < C; ++c) bv[c] = load(b + c * ldb + f);
      for (int r = 0; r < R; ++r) {
        const V<T> av = load(a + r * lda + f);
        for (int c = 0; c < C; ++c) acc[r][c] += av * bv[c];
      }
    }
    if (f < F) {
      for (int r = 0; r < R; ++r) {
        const V<T> av = load<true>(a + r * lda + f, F - f);
        for (int c = 0; c < C; ++c) acc[r][c] += av * load<true>(b + c * ldb + f, F - f);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) out[r * ldo + c] = sum<T>(acc[r][c]);
  }
}

template <class T>
MCT_INLINE Factors<T> moved(const Factors<T>& x, int64_t a, int64_t b) {
  if (x.a2 == nullptr) return {x.a1 + a, x.b1 + b, nullptr, nullptr};
  return {x.a1 + a, x.b1 + b, x.a2 + a, x.b2 + b};
}

template <class T>
void products_nt(int64_t rows, int64_t cols, int64_t F, const Factors<T>& x, int64_t lda, int64_t ldb, T* out,
                 int64_t ldo) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t c = 0;
    for (; c + 4 <= cols; c += 4) tile_nt<T, 4, 4>(F, moved(x, r * lda, c * ldb), lda, ldb, out + r * ldo + c, ldo);
    for (; c < cols; ++c) tile_nt<T, 4, 1>(F, moved(x, r * lda, c * ldb), lda, ldb, out + r * ldo + c, ldo);
  }
  for (; r < rows; ++r) {
    int64_t c = 0;
    for (; c + 4 <= cols; c += 4) tile_nt<T, 1, 4>(F, moved(x, r * lda, c * ldb), lda, ldb, out + r * ldo + c, ldo);
    for (; c < cols; ++c) tile_nt<T, 1, 1>(F, moved(x, r * lda, c * ldb), lda, ldb, out + r * ldo + c, ldo);
  }
}

// One tile of products_nn: R rows of C vectors.
template <class T, int R, int C, bool Partial>
void tile_nn(int64_t n, int64_t K, const Factors<T>& x, int64_t a_row, int64_t a_k, int64_t ldb, T* out, int64_t ldo) {
  constexpr int L = Pack<T>::lanes;
  V<T> acc[R][C] = {};
  const T* as[2] = {x.a1, x.a2};
  const T* bs[2] = {x.b1, x.b2};
  for (int pair = 0; pair < 2 && as[pair] != nullptr; ++pair) {
    const T* a = as[pair];
    const T* b = bs[pair];
    for (int64_t k = 0; k < K; ++k, a += a_k, b += ldb) {
      V<T> bv[C];
      for (int c = 0; c < C; ++c) bv[c] = load<Partial>(b + c * L, n);
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) acc[r][c] += a[r * a_row] * bv[c];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) store<Partial>(out + r * ldo + c * L, acc[r][c], n);
  }
}

template <class T, int R>
void rows_nn(int64_t cols, int64_t K, const Factors<T>& x, int64_t a_row, int64_t a_k, int64_t ldb, T* out, int64_t ldo) {
  constexpr int L = Pack<T>::lanes;
  int64_t f = 0;
  for (; f + 4 * L <= cols; f += 4 * L) tile_nn<T, R, 4, false>(0, K, moved(x, 0, f), a_row, a_k, ldb, out + f, ldo);
  for (; f + L <= cols; f += L) tile_nn<T, R, 1, false>(0, K, moved(x, 0, f), a_row, a_k, ldb, out + f, ldo);
  if (f < cols) tile_nn<T, R, 1, true>(cols - f, K, moved(x, 0, f), a_row, a_k, ldb, out + f, ldo);
}

template <class T>
void products_nn(int64_t rows, int64_t cols, int64_t K, const Factors<T>& x, int64_t a_row, int64_t a_k, int64_t ldb,
                 T* out, int64_t ldo) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) rows_nn<T, 4>(cols, K, moved(x, r * a_row, 0), a_row, a_k, ldb, out + r * ldo, ldo);
  for (; r < rows; ++r) rows_nn<T, 1>(cols, K, moved(x, r * a_row, 0), a_row, a_k, ldb, out + r * ldo, ldo);
}

}  // namespace mct::MCT_ISA
