// Vector helpers of one instruction set. See simd.h; no include guard, because MCT_ISA names the copy.
// Needs MCT_ISA (a name) and MCT_VL (floats a vector: 4, 8 or 16).

#define MCT_INLINE inline __attribute__((always_inline))

namespace mct::MCT_ISA {

constexpr int VL = MCT_VL;

typedef float vf __attribute__((vector_size(MCT_VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(MCT_VL * 4), aligned(4), may_alias));

MCT_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }

MCT_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }

MCT_INLINE vf splat(float a) {
#if MCT_VL == 16
  return vf{a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
#elif MCT_VL == 8
  return vf{a, a, a, a, a, a, a, a};
#else
  return vf{a, a, a, a};
#endif
}

// The first n floats, 0 < n <= VL; the other lanes are zero.
MCT_INLINE vf load_first(const float* p, long n) {
  if (n >= VL) return load(p);
  float t[VL] = {};
  for (long i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}

// Stores the first n lanes, 0 < n <= VL.
MCT_INLINE void store_first(float* p, vf v, long n) {
  if (n >= VL) {
    store(p, v);
    return;
  }
  float t[VL];
  store(t, v);
  for (long i = 0; i < n; ++i) p[i] = t[i];
}

}  // namespace mct::MCT_ISA
