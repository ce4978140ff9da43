// The units of one instruction set (see simd.h): includes the kernels and fills the tables.

#define MCT_INLINE inline __attribute__((always_inline))
// Before a loop over the registers of a tile: without it GCC unrolls too late to keep the tile out of memory.
#define MCT_UNROLL _Pragma("GCC unroll 8")

#include "units_vector.h"

#include "formulas.h"

#include "blocks_impl.h"
#include "flat_impl.h"
#include "linear_impl.h"

namespace mct::MCT_ISA {

template <class T>
constexpr Units<T> table() {
  return {block_forward<T>, block_backward<T>, block_tangent<T>, block_tangent_backward<T>, products_nt<T>,
          products_nn<T>,   matching<T>,       squared_distance<T>, sgd<T>};
}

const Units<float>& units_f32() {
  static constexpr Units<float> t = table<float>();
  return t;
}

const Units<double>& units_f64() {
  static constexpr Units<double> t = table<double>();
  return t;
}

}  // namespace mct::MCT_ISA
