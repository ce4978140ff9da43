// The CPU operators that are not convolutions, for float and double; formulas in mct_fast/ops.
//
// Contiguous arrays but for parameters, whose student stride is given ("_s"); null stands for an absent argument.
// Outputs must not overlap inputs. The same call gives the same bits, whatever the number of threads.
#pragma once

#include <cstdint>

#include "shapes.h"

namespace mct {

template <class T>
void block_forward(const BlockShape& shape, const T* z, Param<T> gamma, Param<T> beta, double eps, T* p, T* mean,
                   T* rstd);

template <class T>
void block_backward(const BlockShape& shape, const T* gp, const T* z, const T* mean, const T* rstd, Param<T> gamma,
                    Param<T> beta, T* gz, T* ggamma, T* gbeta);

template <class T>
void block_tangent(const BlockShape& shape, const T* z, const T* zdot, const T* mean, const T* rstd, Param<T> gamma,
                   Param<T> beta, Param<T> gammadot, Param<T> betadot, T* pdot, T* mean_zdot, T* mean_xhat_zdot);

template <class T>
void block_tangent_backward(const BlockShape& shape, const T* gp, const T* gpdot, const T* z, const T* zdot,
                            const T* mean, const T* rstd, const T* mean_zdot, const T* mean_xhat_zdot, Param<T> gamma,
                            Param<T> beta, Param<T> gammadot, T* gz, T* gzdot, T* ggammadot, T* gbetadot);

struct LinearShape {
  int64_t S, B, F, K;  // h is (S, B, F), w (S, K, F)
};

template <class T>
void linear_ce(const LinearShape& shape, const T* h, Param<T> w, Param<T> b, const T* y, T* loss, T* gh, T* gw, T* gb);

template <class T>
void linear_ce_tangent(const LinearShape& shape, const T* h, const T* hdot, Param<T> w, Param<T> wdot, Param<T> b,
                       Param<T> bdot, const T* y, T* loss_dot, T* gh, T* ghdot, T* gwdot, T* gbdot, T* gydot);

// pos, neg (K): weights of the two terms of each output.
template <class T>
void linear_bce(const LinearShape& shape, const T* h, Param<T> w, Param<T> b, const T* y, const T* pos, const T* neg,
                T* loss, T* gh, T* gw, T* gb);

template <class T>
void linear_bce_tangent(const LinearShape& shape, const T* h, const T* hdot, Param<T> w, Param<T> wdot, Param<T> b,
                        Param<T> bdot, const T* y, const T* pos, const T* neg, T* loss_dot, T* gh, T* ghdot, T* gwdot,
                        T* gbdot, T* gydot);

// offsets: L + 1 numbers rising from 0 to P; frac is (S)[L].
template <class T>
void matching_loss(int64_t S, int64_t P, int64_t L, Param<T> theta, Param<T> origin, Param<T> end, Param<T> frac,
                   const int64_t* offsets, const T* denom, T* loss, T* grad);

template <class T>
void sgd_step(int64_t S, int64_t P, T* params, int64_t params_s, Param<T> grad, T* buffer, int64_t buffer_s,
              const T* lr, double momentum, double weight_decay);

template <class T>
void arc_length(int64_t S, int64_t P, int64_t L, Param<T> previous, Param<T> current, const int64_t* offsets,
                double* length);

struct ImageShape {
  int64_t S, B, C, H, W;  // x is (S, B, C, H, W); H, W >= 2
};

// One augmentation a student: its kind (mct_fast/data/augment.py has the table) and four parameters an image.
// `transpose` applies the adjoint of the linear part.
template <class T>
void dsa(const ImageShape& shape, const T* x, const int64_t* kinds, const float* params, bool transpose, T* out);

}  // namespace mct
