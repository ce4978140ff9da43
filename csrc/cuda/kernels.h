// The CUDA operators; formulas in shared/formulas.h, contract as cpu/kernels.h. Plain C++: neither PyTorch's nor CUDA's headers.
//
// Pointers are the device's. Work is queued on `stream` (a cudaStream_t) of the current device. Returns null, or what the
// runtime says went wrong. The same call gives the same bits: sums run in a fixed order, without atomics.
#pragma once

#include "shared/shapes.h"

namespace mct::cuda {

using Stream = void*;

template <class T>
const char* block_forward(const BlockShape& shape, const T* z, Param<T> gamma, Param<T> beta, double eps, T* p, T* mean,
                          T* rstd, Stream stream);

// `parts` is room for 2 S B C numbers.
template <class T>
const char* block_backward(const BlockShape& shape, const T* gp, const T* z, const T* mean, const T* rstd, Param<T> gamma,
                           Param<T> beta, T* gz, T* ggamma, T* gbeta, T* parts, Stream stream);

template <class T>
const char* block_tangent(const BlockShape& shape, const T* z, const T* zdot, const T* mean, const T* rstd, Param<T> gamma,
                          Param<T> beta, Param<T> gammadot, Param<T> betadot, T* pdot, T* mean_zdot, T* mean_xhat_zdot,
                          Stream stream);

// `parts` is room for 2 S B C numbers.
template <class T>
const char* block_tangent_backward(const BlockShape& shape, const T* gp, const T* gpdot, const T* z, const T* zdot,
                                   const T* mean, const T* rstd, const T* mean_zdot, const T* mean_xhat_zdot,
                                   Param<T> gamma, Param<T> beta, Param<T> gammadot, T* gz, T* gzdot, T* ggammadot,
                                   T* gbetadot, T* parts, Stream stream);

// How many sums of a student `matching_loss` needs room for.
int64_t matching_parts(int64_t P);

// `offsets` lie on the device; `parts` is room for S * matching_parts(P) numbers.
template <class T>
const char* matching_loss(int64_t S, int64_t P, Param<T> theta, Param<T> origin, Param<T> end, Param<T> frac,
                          const int64_t* offsets, const T* denom, T* loss, T* grad, double* parts, Stream stream);

}  // namespace mct::cuda
