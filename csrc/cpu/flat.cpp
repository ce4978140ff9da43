// Passes over flat parameters, cut into blocks of fixed size whose sums are added in order.

#include <cmath>
#include <limits>

#include "kernels.h"
#include "parallel.h"
#include "pool.h"
#include "units.h"

namespace mct {
namespace {

constexpr int64_t kBlock = 8192;  // numbers a unit takes

int64_t blocks_of(int64_t P) { return (P + kBlock - 1) / kBlock; }

// Calls fn(layer, start, end) for the parts of [start, end) within each layer.
template <class Fn>
void for_layers(const int64_t* offsets, int64_t start, int64_t end, const Fn& fn) {
  for (int64_t layer = 0; start < end; ++layer) {
    if (offsets[layer + 1] <= start) continue;
    const int64_t stop = offsets[layer + 1] < end ? offsets[layer + 1] : end;
    fn(layer, start, stop);
    start = stop;
  }
}

// Divided by a denominator that has overflowed, any distance would be 0: a perfect match.
template <class T>
T finite_or_nan(T value) {
  return std::isfinite(value) ? value : std::numeric_limits<T>::quiet_NaN();
}

}  // namespace

template <class T>
void matching_loss(int64_t S, int64_t P, int64_t, Param<T> theta, Param<T> origin, Param<T> end, Param<T> frac,
                   const int64_t* offsets, const T* denom, T* loss, T* grad) {
  const Units<T>& u = units<T>();
  const int64_t blocks = blocks_of(P);
  const Scratch scratch(S * blocks * sizeof(double));
  double* parts = static_cast<double*>(scratch.data());
  parallel_for(S * blocks, pass_cost(kBlock), [&](int64_t unit, int) {
    const int64_t s = unit / blocks, start = unit % blocks * kBlock;
    const T scale = T(2) / finite_or_nan(denom[s]);
    double total = 0;
    for_layers(offsets, start, start + kBlock < P ? start + kBlock : P, [&](int64_t layer, int64_t from, int64_t to) {
      total += u.matching(to - from, theta.of(s) + from, origin.of(s) + from, end.of(s) + from, frac.of(s)[layer], scale,
                          grad + s * P + from);
    });
    parts[unit] = total;
  });
  for (int64_t s = 0; s < S; ++s) {
    double total = 0;
    for (int64_t i = 0; i < blocks; ++i) total += parts[s * blocks + i];
    loss[s] = static_cast<T>(total / static_cast<double>(finite_or_nan(denom[s])));
  }
}

template <class T>
void sgd_step(int64_t S, int64_t P, T* params, int64_t params_s, Param<T> grad, T* buffer, int64_t buffer_s,
              const T* lr, double momentum, double weight_decay) {
  const Units<T>& u = units<T>();
  const int64_t blocks = blocks_of(P);
  parallel_for(S * blocks, pass_cost(kBlock), [&](int64_t unit, int) {
    const int64_t s = unit / blocks, start = unit % blocks * kBlock;
    const int64_t n = P - start < kBlock ? P - start : kBlock;
    u.sgd(n, params + s * params_s + start, grad.of(s) + start, buffer == nullptr ? nullptr : buffer + s * buffer_s + start,
          lr[s], static_cast<T>(momentum), static_cast<T>(weight_decay));
  });
}

template <class T>
void arc_length(int64_t S, int64_t P, int64_t L, Param<T> previous, Param<T> current, const int64_t* offsets,
                double* length) {
  const Units<T>& u = units<T>();
  const int64_t blocks = blocks_of(P), width = blocks + L;  // a layer boundary splits a block: at most this many parts
  const Scratch scratch(S * width * sizeof(double));
  double* parts = static_cast<double*>(scratch.data());
  // the parts of block i and layer l lie at i + l, in the order of the flat vector, and no two share a place
  parallel_for(S * blocks, pass_cost(kBlock), [&](int64_t unit, int) {
    const int64_t s = unit / blocks, i = unit % blocks, start = i * kBlock;
    for_layers(offsets, start, start + kBlock < P ? start + kBlock : P, [&](int64_t layer, int64_t from, int64_t to) {
      parts[s * width + i + layer] = u.squared_distance(to - from, previous.of(s) + from, current.of(s) + from);
    });
  });
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t layer = 0; layer < L; ++layer) {
      double total = 0;
      if (offsets[layer] < offsets[layer + 1]) {
        const int64_t last = (offsets[layer + 1] - 1) / kBlock;
        for (int64_t i = offsets[layer] / kBlock; i <= last; ++i) total += parts[s * width + i + layer];
      }
      length[s * L + layer] = std::sqrt(total);
    }
  }
}

#define MCT_INSTANTIATE(T)                                                                                          \
  template void matching_loss(int64_t, int64_t, int64_t, Param<T>, Param<T>, Param<T>, Param<T>, const int64_t*,    \
                              const T*, T*, T*);                                                                    \
  template void sgd_step(int64_t, int64_t, T*, int64_t, Param<T>, T*, int64_t, const T*, double, double);           \
  template void arc_length(int64_t, int64_t, int64_t, Param<T>, Param<T>, const int64_t*, double*);
MCT_INSTANTIATE(float)
MCT_INSTANTIATE(double)

}  // namespace mct
