// The matching loss of S students and its gradient, in two stages: blocks of fixed size, then each student's blocks. The
// target is interpolated as it is read; squares are summed in double.

#include "common.cuh"
#include "kernels.h"

namespace mct::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = 4096;  // numbers a thread block takes

template <class T>
struct MatchingArgs {
  int64_t P;
  int blocks;
  Param<T> theta, origin, end, frac;
  const int64_t* offsets;
  const T* denom;
  T* grad;
  double* parts;
};

template <class T>
__global__ void __launch_bounds__(kThreads) matching_kernel(const MatchingArgs<T> a) {
  __shared__ double scratch[kThreads];
  const int64_t student = blockIdx.y;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlock, last = first + kBlock < a.P ? first + kBlock : a.P;
  const T *theta = a.theta.of(student), *origin = a.origin.of(student), *end = a.end.of(student);
  const T* frac = a.frac.of(student);
  T* grad = a.grad + student * a.P;
  const T scale = T(2) / a.denom[student];
  double sum[1] = {};
  int64_t from = first;
  for (int layer = 0; from < last; ++layer) {
    const int64_t border = a.offsets[layer + 1], to = border < last ? border : last;
    if (to <= from) continue;
    const T f = frac[layer], rest = T(1) - f;
#pragma unroll 4
    for (int64_t i = from + threadIdx.x; i < to; i += kThreads) {
      const T d = device::miss(__ldg(theta + i), __ldg(origin + i), __ldg(end + i), rest, f);
      grad[i] = scale * d;
      sum[0] += static_cast<double>(d) * d;
    }
    from = to;
  }
  sum_rows(sum, scratch, 0, threadIdx.x, 1, kThreads);
  if (threadIdx.x == 0) a.parts[student * a.blocks + blockIdx.x] = sum[0];
}

template <class T>
struct LossArgs {
  int blocks;
  const double* parts;
  const T* denom;
  T* loss;
};

template <class T>
__global__ void __launch_bounds__(kThreads) loss_kernel(const LossArgs<T> a) {
  __shared__ double scratch[kThreads];
  const int64_t student = blockIdx.x;
  double sum[1] = {};
  for (int i = threadIdx.x; i < a.blocks; i += kThreads) sum[0] += a.parts[student * a.blocks + i];
  sum_rows(sum, scratch, 0, threadIdx.x, 1, kThreads);
  if (threadIdx.x == 0) a.loss[student] = static_cast<T>(sum[0] / static_cast<double>(a.denom[student]));
}

}  // namespace

int64_t matching_parts(int64_t P) { return (P + kBlock - 1) / kBlock; }

template <class T>
const char* matching_loss(int64_t S, int64_t P, Param<T> theta, Param<T> origin, Param<T> end, Param<T> frac,
                          const int64_t* offsets, const T* denom, T* loss, T* grad, double* parts, Stream stream) {
  if (S > 65535 || matching_parts(P) >= (int64_t{1} << 31)) return "too many students or parameters for one call";
  const int blocks = static_cast<int>(matching_parts(P));
  const MatchingArgs<T> args{P, blocks, theta, origin, end, frac, offsets, denom, grad, parts};
  launch(matching_kernel<T>, dim3(blocks, static_cast<unsigned>(S)), kThreads, 0, stream, args);
  if (const char* why = last_error()) return why;
  launch(loss_kernel<T>, dim3(static_cast<unsigned>(S)), kThreads, 0, stream, LossArgs<T>{blocks, parts, denom, loss});
  return last_error();
}

#define MCT_INSTANTIATE(T)                                                                                             \
  template const char* matching_loss(int64_t, int64_t, Param<T>, Param<T>, Param<T>, Param<T>, const int64_t*, const T*, \
                                     T*, T*, double*, Stream);
MCT_INSTANTIATE(float)
MCT_INSTANTIATE(double)

}  // namespace mct::cuda
