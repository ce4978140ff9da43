// What conv3x3.cpp hands to the kernels of one instruction set. Includes every header that the kernels need, because
// they switch the compiler's target on afterwards (see simd.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "conv3x3.h"
#include "parallel.h"
#include "pool.h"
#include "simd.h"

namespace mct {

// A convolution with K input and N output channels: forward (K = Ci, N = Co) and input gradient (K = Co, N = Ci, taps
// flipped) alike. Element (n, k, tap) of a student's weights is w[n * w_n + k * w_k + tap], tap = 8 - tap if flipped.
// A pair of operands adds up.
struct ConvProblem {
  int64_t S, B, H, W, K, N;
  int pairs;               // 1 or 2
  const float* x[2];       // (S, B, H, W, K)
  const float* w[2];
  int64_t w_stride_s[2];
  int64_t w_n, w_k;
  bool flipped;
  const float* bias;       // null or (S)[N]
  int64_t bias_stride_s;
  float* out;              // (S, B, H, W, N)
};

struct WeightProblem {
  int64_t S, B, H, W, Ci, Co;
  int pairs;
  const float* x[2];
  const float* g[2];
  float* gw;
  int64_t gw_stride_s;
  float* gb;               // null or (S)[Co]: the sum of g[0]
  int64_t gb_stride_s;
};

// One image of a convolution with K <= 4 input channels, all arrays float; one panel of output channels at a time, whose
// planes are (H, W, panel). Comments stand at the implementations (conv3x3_image.h).
struct ImagePlane {
  int64_t H, W, K;
};

struct ImageUnits {
  int64_t panel;
  void (*pad)(const ImagePlane& p, const float* image, float* padded);
  void (*pack)(int64_t K, int64_t columns, const float* w, float* packed);
  void (*convolve)(const ImagePlane& p, const float* padded, const float* packed, const float* bias, float* z);
  void (*weight_grad)(const ImagePlane& p, const float* padded, const float* g, float* sums);
  void (*pack_taps)(int64_t K, int64_t rows, const float* w, float* packed);
  void (*spread)(const ImagePlane& p, int64_t channels, const float* g1, const float* taps1, const float* g2,
                 const float* taps2, float* products);
  void (*collect)(const ImagePlane& p, const float* products, float* sums, float* gx);
  int64_t (*products)(const ImagePlane& p);  // floats that `spread` and `collect` need
  int64_t (*sums)(const ImagePlane& p);
};

#define MCT_DECLARE_CONV3X3(isa)                              \
  namespace isa {                                             \
  void convolve(const ConvProblem& p, ConvAlgorithm how);     \
  void weight_gradient(const WeightProblem& p, ConvAlgorithm how); \
  const ImageUnits& image_units();                            \
  }
#if MCT_X86_KERNELS
MCT_DECLARE_CONV3X3(avx512)
MCT_DECLARE_CONV3X3(avx2)
#endif
MCT_DECLARE_CONV3X3(portable)
#undef MCT_DECLARE_CONV3X3

}  // namespace mct
