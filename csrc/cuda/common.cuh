// What the CUDA kernels share: the formulas on this side, shared memory, starting a kernel, sums in a fixed order.
//
// A C++ compiler takes these files too, with a stand-in for cuda_runtime.h that runs threads by turns
// (tests/ops/cuda_on_the_host): what nvcc alone understands stands here and nowhere else.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#define MCT_ISA device
#define MCT_FORMULA __host__ __device__ __forceinline__
#include "shared/formulas.h"

namespace mct::cuda {

// The block's shared memory, as much as its launch asked for.
template <class T>
__device__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ double memory[];
#else
  double* const memory = host_shared_memory();
#endif
  return reinterpret_cast<T*>(memory);
}

template <class Args>
void launch(void (*kernel)(Args), dim3 blocks, unsigned threads, std::size_t shared, void* stream, const Args& args) {
#ifdef __CUDACC__
  kernel<<<blocks, threads, shared, static_cast<cudaStream_t>(stream)>>>(args);
#else
  host_launch(blocks, threads, shared, [&] { kernel(args); });
#endif
}

// Adds v[k] up over the rows of a block of width x rows threads (rows a power of two); every thread gets its column's sums,
// added in the order of a tree. `scratch` is room for N * width * rows numbers.
template <int N, class T>
__device__ void sum_rows(T (&v)[N], T* scratch, int lane, int row, int width, int rows) {
  for (int k = 0; k < N; ++k) scratch[(k * rows + row) * width + lane] = v[k];
  __syncthreads();
  for (int step = rows / 2; step > 0; step /= 2) {
    if (row < step) {
      for (int k = 0; k < N; ++k) scratch[(k * rows + row) * width + lane] += scratch[(k * rows + row + step) * width + lane];
    }
    __syncthreads();
  }
  for (int k = 0; k < N; ++k) v[k] = scratch[k * rows * width + lane];
  __syncthreads();  // the scratch is free again
}

inline const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace mct::cuda
