// The thread loop of the CPU kernels. It follows omp_get_max_threads(), which torch.set_num_threads() sets.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mct {

// Threads that the next parallel_for may use: an upper bound of the `thread` argument it passes, plus one.
inline int max_threads() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Work below this is not worth a thread: waking one costs microseconds, and far more on a machine that is busy otherwise.
constexpr double kLeastNanoseconds = 10'000;

// Rough nanoseconds of one thread, for parallel_for: so many multiply-adds of a register-blocked product, so many
// floats moved or transformed.
inline double product_cost(int64_t multiply_adds) { return static_cast<double>(multiply_adds) / 32; }
inline double pass_cost(int64_t floats) { return static_cast<double>(floats) / 4; }

// Calls fn(index, thread) once for each index in [0, n), in any order and on any thread; thread < max_threads().
// An index takes about `nanoseconds`; little work is done by few threads. Results must not depend on which thread ran an
// index: reductions belong into per-index slots that are summed in a fixed order afterwards. fn must not throw. Inside
// another parallel region it runs serially.
template <class Fn>
inline void parallel_for(int64_t n, double nanoseconds, const Fn& fn) {
#ifdef _OPENMP
  const double worth = static_cast<double>(n) * nanoseconds / kLeastNanoseconds;
  int64_t most = max_threads();
  if (most > n) most = n;
  const int threads = worth >= static_cast<double>(most) ? static_cast<int>(most) : static_cast<int>(worth);
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < n; ++i) fn(i, thread);
    }
    return;
  }
#endif
  (void)nanoseconds;
  for (int64_t i = 0; i < n; ++i) fn(i, 0);
}

}  // namespace mct
