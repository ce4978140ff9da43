// Elementwise passes over flat parameters, in one instruction set (see simd.h and units.h). Squares are summed in double.

namespace mct::MCT_ISA {

template <class T>
double matching(int64_t n, const T* theta, const T* origin, const T* end, T f, T scale, T* grad) {
  double total = 0;
  const T rest = 1 - f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) {
    const T d = miss(theta[i], origin[i], end[i], rest, f);
    grad[i] = scale * d;
    total += static_cast<double>(d) * d;
  }
  return total;
}

template <class T>
double squared_distance(int64_t n, const T* a, const T* b) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(b[i]) - a[i];
    total += d * d;
  }
  return total;
}

template <class T>
void sgd(int64_t n, T* p, const T* g, T* buffer, T lr, T momentum, T weight_decay) {
  if (buffer == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) p[i] -= lr * (g[i] + weight_decay * p[i]);
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T v = momentum * buffer[i] + (g[i] + weight_decay * p[i]);
    buffer[i] = v;
    p[i] -= lr * v;
  }
}

}  // namespace mct::MCT_ISA
