#include "simd.h"

#include <atomic>

namespace mct {
namespace {

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(best_isa())};
  return isa;
}

}  // namespace

Isa best_isa() noexcept {
#if MCT_X86_KERNELS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa active_isa() noexcept { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

bool set_isa(Isa isa) noexcept {
  if (static_cast<int>(isa) > static_cast<int>(best_isa())) return false;
  chosen().store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

}  // namespace mct
