#include "units.h"

namespace mct {

template <>
const Units<float>& units<float>() {
  switch (active_isa()) {
#if MCT_X86_KERNELS
    case Isa::avx512: return avx512::units_f32();
    case Isa::avx2: return avx2::units_f32();
#endif
    default: return portable::units_f32();
  }
}

template <>
const Units<double>& units<double>() {
  switch (active_isa()) {
#if MCT_X86_KERNELS
    case Isa::avx512: return avx512::units_f64();
    case Isa::avx2: return avx2::units_f64();
#endif
    default: return portable::units_f64();
  }
}

}  // namespace mct
