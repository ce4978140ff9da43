// Cuts the block operators into (student, image, group of channels) and adds the images' parameter gradients up.

#include "kernels.h"
#include "parallel.h"
#include "pool.h"
#include "units.h"

namespace mct {
namespace {

// Channels a unit takes: enough for whole cache lines, few enough that a plane's z and zdot stay in the L2 cache.
constexpr int64_t kChannels = 64;

// Calls fn(student, image, first channel, plane) for every unit; image counts through all students.
template <class Fn>
void for_units(const BlockShape& s, bool streaming, const Fn& fn) {
  const int64_t groups = (s.C + kChannels - 1) / kChannels;
  parallel_for(s.S * s.B * groups, pass_cost(2 * s.H * s.W * (s.C < kChannels ? s.C : kChannels)), [&](int64_t unit, int) {
    const int64_t image = unit / groups, c = unit % groups * kChannels;
    const int64_t channels = s.C - c < kChannels ? s.C - c : kChannels;
    fn(image / s.B, image, c, Plane{s.H, s.W, s.C, s.C, channels, s.pool, streaming});
  });
}

// Whether an output like z is too large to stay in the caches for the next reader; plain stores would read it first.
template <class T>
bool worth_streaming(const BlockShape& s, const T* out) {
  const int64_t bytes = s.S * s.B * s.H * s.W * s.C * static_cast<int64_t>(sizeof(T));
  return bytes >= (int64_t{4} << 20) && s.C * sizeof(T) % 64 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

int64_t plane_size(const BlockShape& s) { return s.H * s.W * s.C; }
int64_t pooled_size(const BlockShape& s) { return s.pool ? (s.H / 2) * (s.W / 2) * s.C : plane_size(s); }

template <class T>
const T* at(Param<T> p, int64_t student, int64_t c) {
  return p.data == nullptr ? nullptr : p.of(student) + c;
}

// out (S, C) = sum over the images of parts (S, B, C)
template <class T>
void add_images(const BlockShape& s, const T* parts, T* out) {
  for (int64_t student = 0; student < s.S; ++student) {
    for (int64_t c = 0; c < s.C; ++c) {
      double total = 0;
      for (int64_t b = 0; b < s.B; ++b) total += parts[(student * s.B + b) * s.C + c];
      out[student * s.C + c] = static_cast<T>(total);
    }
  }
}

}  // namespace

template <class T>
void block_forward(const BlockShape& s, const T* z, Param<T> gamma, Param<T> beta, double eps, T* p, T* mean, T* rstd) {
  const Units<T>& u = units<T>();
  for_units(s, false, [&](int64_t student, int64_t image, int64_t c, const Plane& plane) {
    u.block_forward(plane, z + image * plane_size(s) + c, at(gamma, student, c), at(beta, student, c),
                    static_cast<T>(eps), p + image * pooled_size(s) + c, mean + image * s.C + c, rstd + image * s.C + c);
  });
}

template <class T>
void block_backward(const BlockShape& s, const T* gp, const T* z, const T* mean, const T* rstd, Param<T> gamma,
                    Param<T> beta, T* gz, T* ggamma, T* gbeta) {
  const Units<T>& u = units<T>();
  const Scratch scratch(2 * s.S * s.B * s.C * sizeof(T));
  T* parts = static_cast<T*>(scratch.data());
  T* parts2 = parts + s.S * s.B * s.C;
  for_units(s, worth_streaming(s, gz), [&](int64_t student, int64_t image, int64_t c, const Plane& plane) {
    const int64_t i = image * plane_size(s) + c, k = image * s.C + c;
    u.block_backward(plane, gp + image * pooled_size(s) + c, z + i, mean + k, rstd + k, at(gamma, student, c),
                     at(beta, student, c), gz + i, parts + k, parts2 + k);
  });
  add_images(s, parts, ggamma);
  add_images(s, parts2, gbeta);
}

template <class T>
void block_tangent(const BlockShape& s, const T* z, const T* zdot, const T* mean, const T* rstd, Param<T> gamma,
                   Param<T> beta, Param<T> gammadot, Param<T> betadot, T* pdot, T* mean_zdot, T* mean_xhat_zdot) {
  const Units<T>& u = units<T>();
  for_units(s, false, [&](int64_t student, int64_t image, int64_t c, const Plane& plane) {
    const int64_t i = image * plane_size(s) + c, k = image * s.C + c;
    u.block_tangent(plane, z + i, zdot + i, mean + k, rstd + k, at(gamma, student, c), at(beta, student, c),
                    at(gammadot, student, c), at(betadot, student, c), pdot + image * pooled_size(s) + c, mean_zdot + k,
                    mean_xhat_zdot + k);
  });
}

template <class T>
void block_tangent_backward(const BlockShape& s, const T* gp, const T* gpdot, const T* z, const T* zdot,
                            const T* mean, const T* rstd, const T* mean_zdot, const T* mean_xhat_zdot, Param<T> gamma,
                            Param<T> beta, Param<T> gammadot, T* gz, T* gzdot, T* ggammadot, T* gbetadot) {
  const Units<T>& u = units<T>();
  const Scratch scratch(2 * s.S * s.B * s.C * sizeof(T));
  T* parts = static_cast<T*>(scratch.data());
  T* parts2 = parts + s.S * s.B * s.C;
  for_units(s, worth_streaming(s, gz) && worth_streaming(s, gzdot), [&](int64_t student, int64_t image, int64_t c, const Plane& plane) {
    const int64_t i = image * plane_size(s) + c, k = image * s.C + c, g = image * pooled_size(s) + c;
    u.block_tangent_backward(plane, gp + g, gpdot + g, z + i, zdot + i, mean + k, rstd + k, mean_zdot + k,
                             mean_xhat_zdot + k, at(gamma, student, c), at(beta, student, c), at(gammadot, student, c),
                             gz + i, gzdot + i, parts + k, parts2 + k);
  });
  add_images(s, parts, ggammadot);
  add_images(s, parts2, gbetadot);
}

#define MCT_INSTANTIATE(T)                                                                                          \
  template void block_forward(const BlockShape&, const T*, Param<T>, Param<T>, double, T*, T*, T*);                 \
  template void block_backward(const BlockShape&, const T*, const T*, const T*, const T*, Param<T>, Param<T>, T*,   \
                               T*, T*);                                                                             \
  template void block_tangent(const BlockShape&, const T*, const T*, const T*, const T*, Param<T>, Param<T>,        \
                              Param<T>, Param<T>, T*, T*, T*);                                                      \
  template void block_tangent_backward(const BlockShape&, const T*, const T*, const T*, const T*, const T*,         \
                                       const T*, const T*, const T*, Param<T>, Param<T>, Param<T>, T*, T*, T*, T*);
MCT_INSTANTIATE(float)
MCT_INSTANTIATE(double)

}  // namespace mct
