// C entry points of the CUDA launchers, for ctypes. Parameters come as a pointer and a stride.

#include <cuda_runtime.h>

#include "cuda/kernels.h"

using mct::BlockShape;
using mct::Param;

extern "C" void set_shared_limit(int bytes) { host_shared_limit = bytes; }

extern "C" int64_t matching_parts(int64_t P) { return mct::cuda::matching_parts(P); }

#define MCT_P(name) const T *name, int64_t name##_s
#define MCT_A(name) Param<T>{name, name##_s}

#define MCT_ENTRIES(T_, suffix)                                                                                            \
  namespace suffix##_entries {                                                                                             \
  using T = T_;                                                                                                            \
  extern "C" const char* block_forward_##suffix(const BlockShape* s, const T* z, MCT_P(gamma), MCT_P(beta), double eps,    \
                                                T* p, T* mean, T* rstd) {                                                  \
    return mct::cuda::block_forward<T>(*s, z, MCT_A(gamma), MCT_A(beta), eps, p, mean, rstd, nullptr);                     \
  }                                                                                                                        \
  extern "C" const char* block_backward_##suffix(const BlockShape* s, const T* gp, const T* z, const T* mean,              \
                                                 const T* rstd, MCT_P(gamma), MCT_P(beta), T* gz, T* ggamma, T* gbeta,     \
                                                 T* parts) {                                                               \
    return mct::cuda::block_backward<T>(*s, gp, z, mean, rstd, MCT_A(gamma), MCT_A(beta), gz, ggamma, gbeta, parts,        \
                                        nullptr);                                                                          \
  }                                                                                                                        \
  extern "C" const char* block_tangent_##suffix(const BlockShape* s, const T* z, const T* zdot, const T* mean,             \
                                                const T* rstd, MCT_P(gamma), MCT_P(beta), MCT_P(gammadot),                 \
                                                MCT_P(betadot), T* pdot, T* m1, T* m2) {                                   \
    return mct::cuda::block_tangent<T>(*s, z, zdot, mean, rstd, MCT_A(gamma), MCT_A(beta), MCT_A(gammadot),                \
                                       MCT_A(betadot), pdot, m1, m2, nullptr);                                             \
  }                                                                                                                        \
  extern "C" const char* block_tangent_backward_##suffix(                                                                  \
      const BlockShape* s, const T* gp, const T* gpdot, const T* z, const T* zdot, const T* mean, const T* rstd,           \
      const T* m1, const T* m2, MCT_P(gamma), MCT_P(beta), MCT_P(gammadot), T* gz, T* gzdot, T* ggammadot, T* gbetadot,    \
      T* parts) {                                                                                                          \
    return mct::cuda::block_tangent_backward<T>(*s, gp, gpdot, z, zdot, mean, rstd, m1, m2, MCT_A(gamma), MCT_A(beta),     \
                                                MCT_A(gammadot), gz, gzdot, ggammadot, gbetadot, parts, nullptr);          \
  }                                                                                                                        \
  extern "C" const char* matching_loss_##suffix(int64_t S, int64_t P, MCT_P(theta), MCT_P(origin), MCT_P(end),             \
                                                MCT_P(frac), const int64_t* offsets, const T* denom, T* loss, T* grad,     \
                                                double* parts) {                                                           \
    return mct::cuda::matching_loss<T>(S, P, MCT_A(theta), MCT_A(origin), MCT_A(end), MCT_A(frac), offsets, denom, loss,   \
                                       grad, parts, nullptr);                                                              \
  }                                                                                                                        \
  }

MCT_ENTRIES(float, f32)
MCT_ENTRIES(double, f64)
