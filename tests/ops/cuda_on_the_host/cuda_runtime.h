// A stand-in for CUDA's runtime: compiles the kernels as C++ and runs them on the processor, for tests without a GPU.
//
// A block's threads are coroutines that take turns; __syncthreads() hands over. Blocks run one after another. What this cannot
// show: races between threads that happen to come out right in this order, and anything about speed.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

inline dim3 threadIdx, blockIdx;

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

// The shared memory of a block of this make-believe device, and whether a kernel asked for more than 48 KiB without leave.
inline int host_shared_limit = 227 << 10;
inline int host_granted = 48 << 10;
inline cudaError_t host_error = cudaSuccess;

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = host_error;
  host_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t) { return "refused by the stand-in device"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = host_shared_limit;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  if (bytes > host_shared_limit) return 1;
  host_granted = bytes;
  return cudaSuccess;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t{a} * b) >> 32); }

struct Coroutine {
  ucontext_t context;
  std::vector<char> stack;
  bool finished;
};

inline ucontext_t host_scheduler;
inline Coroutine* host_current;
inline const std::function<void()>* host_body;
inline std::vector<double> host_memory;

inline double* host_shared_memory() { return host_memory.data(); }

inline void __syncthreads() { swapcontext(&host_current->context, &host_scheduler); }

inline void host_entry() {
  (*host_body)();
  host_current->finished = true;
}

inline void host_launch(dim3 blocks, unsigned threads, std::size_t shared, const std::function<void()>& body) {
  if (threads > 1024 || shared > static_cast<std::size_t>(host_granted)) {
    host_error = 1;
    return;
  }
  host_granted = 48 << 10;
  host_body = &body;
  std::vector<Coroutine> all(threads);
  for (auto& one : all) one.stack.resize(64 << 10);
  for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
      // whatever a kernel reads before it is written is not a number
      host_memory.assign(shared / sizeof(double) + 1, std::numeric_limits<double>::quiet_NaN());
      for (auto& one : all) {
        one.finished = false;
        getcontext(&one.context);
        one.context.uc_stack = {one.stack.data(), 0, one.stack.size()};
        one.context.uc_link = &host_scheduler;
        makecontext(&one.context, host_entry, 0);
      }
      for (unsigned finished = 0; finished < threads;) {
        finished = 0;
        for (unsigned t = 0; t < threads; ++t) {
          host_current = &all[t];
          threadIdx.x = t;
          if (!host_current->finished) swapcontext(&host_scheduler, &host_current->context);
          finished += host_current->finished;
        }
        if (finished != 0 && finished != threads) {
          std::fputs("some threads of a block left while others waited\n", stderr);
          std::abort();
        }
      }
    }
  }
}
