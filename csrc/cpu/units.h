// One unit of work of each operator that is not a convolution: what a thread does without looking at the others.
// The drivers (blocks.cpp, linear.cpp, flat.cpp, dsa.cpp) cut a call into units and sum their results in a fixed order.
// Units exist for float and double, and once for each instruction set; includes all that units_impl.h needs (simd.h).
#pragma once

#include <cstdint>

#include "simd.h"

namespace mct {

// One image of one student, some of its channels: element (y, x, c) of z is z[(y * W + x) * C + c]; the pooled plane
// likewise with its own width and pooled_C. `channels` of them are processed, starting at the pointers given.
struct Plane {
  int64_t H, W, C, pooled_C, channels;
  bool pool;
  bool streaming;  // cotangents of z are stored past the caches; then they and C are multiples of a cache line
};

// A pair of products a1 b1 + a2 b2; the second is absent where a2 is null.
template <class T>
struct Factors {
  const T* a1;
  const T* b1;
  const T* a2;
  const T* b2;
};

template <class T>
struct Units {
  // Norm (unless gamma is null), ReLU, pool. mean and rstd receive `channels` numbers.
  void (*block_forward)(const Plane& s, const T* z, const T* gamma, const T* beta, T eps, T* p, T* mean, T* rstd);
  // ggamma and gbeta receive this image's part of the sums.
  void (*block_backward)(const Plane& s, const T* gp, const T* z, const T* mean, const T* rstd, const T* gamma,
                         const T* beta, T* gz, T* ggamma, T* gbeta);
  void (*block_tangent)(const Plane& s, const T* z, const T* zdot, const T* mean, const T* rstd, const T* gamma,
                        const T* beta, const T* gammadot, const T* betadot, T* pdot, T* mean_zdot, T* mean_xhat_zdot);
  void (*block_tangent_backward)(const Plane& s, const T* gp, const T* gpdot, const T* z, const T* zdot, const T* mean,
                                 const T* rstd, const T* mean_zdot, const T* mean_xhat_zdot, const T* gamma,
                                 const T* beta, const T* gammadot, T* gz, T* gzdot, T* ggammadot, T* gbetadot);
  // out[r][k] = sum over f < F of a[r * lda + f] * b[k * ldb + f], for r < rows and k < cols; out has leading dimension ldo.
  void (*products_nt)(int64_t rows, int64_t cols, int64_t F, const Factors<T>& x, int64_t lda, int64_t ldb, T* out,
                      int64_t ldo);
  // out[r][f] = sum over k < K of a[r * a_row + k * a_k] * b[k * ldb + f], for r < rows and f < cols.
  void (*products_nn)(int64_t rows, int64_t cols, int64_t K, const Factors<T>& x, int64_t a_row, int64_t a_k, int64_t ldb,
                      T* out, int64_t ldo);
  // grad = scale * (theta - target); returns the sum of squares of theta - target = theta - ((1 - f) origin + f end).
  double (*matching)(int64_t n, const T* theta, const T* origin, const T* end, T f, T scale, T* grad);
  double (*squared_distance)(int64_t n, const T* a, const T* b);
  // `buffer` may be null.
  void (*sgd)(int64_t n, T* p, const T* g, T* buffer, T lr, T momentum, T weight_decay);
};

#define MCT_DECLARE_UNITS(isa)      \
  namespace isa {                   \
  const Units<float>& units_f32();  \
  const Units<double>& units_f64(); \
  }
#if MCT_X86_KERNELS
MCT_DECLARE_UNITS(avx512)
MCT_DECLARE_UNITS(avx2)
#endif
MCT_DECLARE_UNITS(portable)
#undef MCT_DECLARE_UNITS

// Those of the instruction set in use; T is float or double.
template <class T>
const Units<T>& units();

}  // namespace mct
