// The network's first convolution with the block that follows it. Its planes are the largest of the network and its input
// has few channels, so z is computed again from the images in each sweep instead of written and read: one image and one
// panel of channels at a time, which stay in the level-2 cache. Formulas in mct_fast/ops; arrays and parameters as in
// kernels.h.
#pragma once

#include <cstdint>

#include "shapes.h"

namespace mct {

struct FirstShape {
  int64_t S, B, H, W, Ci, Co;  // x is (S, B, H, W, Ci), w (S)[Co][Ci][3][3]
  bool pool;
};

// What all four sweeps read; gamma and beta are null without a norm. A tangent of it has no x.
template <class T>
struct FirstLayer {
  Param<T> w, bias, gamma, beta;
};

template <class T>
void first_block(const FirstShape& shape, const T* x, const FirstLayer<T>& layer, double eps, T* p, T* mean, T* rstd);

template <class T>
void first_block_backward(const FirstShape& shape, const T* gp, const T* x, const FirstLayer<T>& layer, const T* mean,
                          const T* rstd, T* gw, T* gb, T* ggamma, T* gbeta);

template <class T>
void first_block_tangent(const FirstShape& shape, const T* x, const FirstLayer<T>& layer, const FirstLayer<T>& dot,
                         const T* mean, const T* rstd, T* pdot, T* mean_zdot, T* mean_xhat_zdot);

template <class T>
void first_block_tangent_backward(const FirstShape& shape, const T* gp, const T* gpdot, const T* x,
                                  const FirstLayer<T>& layer, const FirstLayer<T>& dot, const T* mean, const T* rstd,
                                  const T* mean_zdot, const T* mean_xhat_zdot, T* gxdot, T* gwdot, T* gbdot,
                                  T* ggammadot, T* gbetadot);

}  // namespace mct
