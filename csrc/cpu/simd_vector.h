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

// Stores past the caches, for outputs too large to stay there. p is aligned to the vector. Call stream_end() before
// another thread may read.
MCT_INLINE void stream(float* p, vf v) {
#if MCT_X86_KERNELS && MCT_VL == 16
  __builtin_ia32_movntps512(p, v);
#elif MCT_X86_KERNELS && MCT_VL == 8
  __builtin_ia32_movntps256(p, v);
#else
  store(p, v);
#endif
}

MCT_INLINE void stream_end() {
#if MCT_X86_KERNELS
  __builtin_ia32_sfence();
#endif
}

// One step of a transposition: swaps the off-diagonal squares of side D of a and b, D lanes apart.
template <int D>
MCT_INLINE void swap_squares(vf& a, vf& b) {
#define MCT_LOW(l) ((l) & D ? VL + (l)-D : (l))
#define MCT_HIGH(l) ((l) & D ? VL + (l) : (l) + D)
#define MCT_LANES4(f, l) f(l), f(l + 1), f(l + 2), f(l + 3)
#if MCT_VL == 16
#define MCT_LANES(f) MCT_LANES4(f, 0), MCT_LANES4(f, 4), MCT_LANES4(f, 8), MCT_LANES4(f, 12)
#elif MCT_VL == 8
#define MCT_LANES(f) MCT_LANES4(f, 0), MCT_LANES4(f, 4)
#else
#define MCT_LANES(f) MCT_LANES4(f, 0)
#endif
#if defined(__clang__)
  const vf low = __builtin_shufflevector(a, b, MCT_LANES(MCT_LOW)), high = __builtin_shufflevector(a, b, MCT_LANES(MCT_HIGH));
#else
  typedef int32_t lanes __attribute__((vector_size(MCT_VL * 4)));
  const vf low = __builtin_shuffle(a, b, lanes{MCT_LANES(MCT_LOW)}), high = __builtin_shuffle(a, b, lanes{MCT_LANES(MCT_HIGH)});
#endif
#undef MCT_LANES
#undef MCT_LANES4
#undef MCT_LOW
#undef MCT_HIGH
  a = low;
  b = high;
}

template <int D>
MCT_INLINE void transpose_step(vf* r) {
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    if ((i & D) == 0) swap_squares<D>(r[i], r[i + D]);
  }
}

// Transposes the VL x VL matrix whose rows are r[0 .. VL).
MCT_INLINE void transpose(vf* r) {
#if MCT_VL >= 16
  transpose_step<8>(r);
#endif
#if MCT_VL >= 8
  transpose_step<4>(r);
#endif
  transpose_step<2>(r);
  transpose_step<1>(r);
}

}  // namespace mct::MCT_ISA
