// Vectors of float or double for the units, in one instruction set; no include guard, as simd_vector.h.

namespace mct::MCT_ISA {

template <class T>
struct Pack {
  static constexpr int lanes = MCT_VL * 4 / static_cast<int>(sizeof(T));
  typedef T type __attribute__((vector_size(MCT_VL * 4)));
  typedef T unaligned __attribute__((vector_size(MCT_VL * 4), aligned(sizeof(T)), may_alias));
};

template <class T>
using V = typename Pack<T>::type;

template <class T>
MCT_INLINE V<T> load(const T* p) {
  return *reinterpret_cast<const typename Pack<T>::unaligned*>(p);
}

template <class T>
MCT_INLINE void store(T* p, V<T> v) {
  *reinterpret_cast<typename Pack<T>::unaligned*>(p) = v;
}

// Where Partial, only the first n lanes exist: the others read as zero and are not written.
template <bool Partial, class T>
MCT_INLINE V<T> load(const T* p, int64_t n) {
  if constexpr (!Partial) {
    return load(p);
  } else {
    T t[Pack<T>::lanes] = {};
    for (int64_t i = 0; i < n; ++i) t[i] = p[i];
    return load(t);
  }
}

template <bool Partial, class T>
MCT_INLINE void store(T* p, V<T> v, int64_t n) {
  if constexpr (!Partial) {
    store(p, v);
  } else {
    T t[Pack<T>::lanes];
    store(t, v);
    for (int64_t i = 0; i < n; ++i) p[i] = t[i];
  }
}

// Stores past the caches. p is aligned to the vector; stream_end() before another thread may read.
template <class T>
MCT_INLINE void stream(T* p, V<T> v) {
#if MCT_X86_KERNELS && MCT_VL == 16
  __builtin_ia32_movntps512(reinterpret_cast<float*>(p), reinterpret_cast<V<float>>(v));
#elif MCT_X86_KERNELS && MCT_VL == 8
  __builtin_ia32_movntps256(reinterpret_cast<float*>(p), reinterpret_cast<V<float>>(v));
#else
  store(p, v);
#endif
}

MCT_INLINE void stream_end() {
#if MCT_X86_KERNELS
  __builtin_ia32_sfence();
#endif
}

template <class T>
MCT_INLINE V<T> splat(T a) {
  return a - V<T>{};
}

template <class T>
MCT_INLINE T sum(V<T> v) {
  T t[Pack<T>::lanes];
  store(t, v);
  for (int step = Pack<T>::lanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) t[i] += t[i + step];
  }
  return t[0];
}

}  // namespace mct::MCT_ISA
