#include "first_block.h"

#include "conv3x3.h"
#include "conv3x3_kernels.h"
#include "kernels.h"
#include "parallel.h"
#include "pool.h"
#include "units.h"

namespace mct {
namespace {

// Planes larger than this leave the level-2 cache before they are used again.
constexpr int64_t kPlaneBytes = int64_t{1} << 20;

const ImageUnits& image_units() {
  switch (active_isa()) {
#if MCT_X86_KERNELS
    case Isa::avx512: return avx512::image_units();
    case Isa::avx2: return avx2::image_units();
#endif
    default: return portable::image_units();
  }
}

template <class T>
T* take(T*& from, int64_t count) {
  T* const here = from;
  from += (count + 15) / 16 * 16;
  return here;
}

// ---------------------------------------------------------------------------------------------- operator by operator

// The convolution and the block as operators of their own: float64, many input channels, large planes.
template <class T>
struct Apart {
  FirstShape s;
  ConvShape conv;
  BlockShape block;
  int64_t plane;
  Scratch scratch;

  Apart(const FirstShape& shape, int planes)
      : s(shape),
        conv{s.S, s.B, s.H, s.W, s.Ci, s.Co},
        block{s.S, s.B, s.H, s.W, s.Co, s.pool},
        plane((s.S * s.B * s.H * s.W * s.Co + 15) / 16 * 16),
        scratch(static_cast<size_t>(planes * plane) * sizeof(T)) {}

  T* at(int i) const { return static_cast<T*>(scratch.data()) + i * plane; }

  void convolve(const T* x, const FirstLayer<T>& l, T* to) const {
    conv3x3_forward(conv, x, l.w.data, l.w.stride_s, l.bias.data, l.bias.stride_s, static_cast<const T*>(nullptr),
                    static_cast<const T*>(nullptr), 0, to);
  }
  void weight_grad(const T* g, const T* x, T* gw, T* gb) const {
    conv3x3_weight_grad(conv, g, x, static_cast<const T*>(nullptr), static_cast<const T*>(nullptr), gw,
                        s.Co * s.Ci * 9, gb, s.Co);
  }
};

// ------------------------------------------------------------------------------------------------------ image by image

bool together(const FirstShape& s) {
  return s.Ci <= 4 && s.H * s.W * image_units().panel * static_cast<int64_t>(sizeof(float)) <= kPlaneBytes;
}

// A sweep over (student, image) or (student, image, panel): a thread's planes, and the weights of all students packed.
class Sweep {
 public:
  // planes: how many planes of a panel a thread holds; layers: the layer alone, or its tangent too.
  Sweep(const FirstShape& shape, const float* x, const FirstLayer<float>* const* layers, int count, int planes,
        int64_t extra)
      : s(shape),
        u(image_units()),
        image{s.H, s.W, s.Ci},
        CB(u.panel),
        panels((s.Co + CB - 1) / CB),
        plane(s.H * s.W * CB),
        x_(x),
        packed_size_(s.S * count * panels * (9 * s.Ci + 1) * CB),
        padded_((s.H + 2) * (s.W + 2) * s.Ci + 64),
        room_((padded_ + planes * (plane + 16) + extra + 64 + 15) / 16 * 16),
        count_(count),
        scratch_(static_cast<size_t>(packed_size_ + max_threads() * room_ + 16) * sizeof(float)) {
    float* const packed = scratch_.floats();
    parallel_for(s.S * count * panels, pass_cost(9 * s.Ci * CB), [&](int64_t job, int) {
      const int64_t q = job % panels, i = job / panels % count, student = job / (panels * count);
      float* const to = packed + job * (9 * s.Ci + 1) * CB;
      u.pack(s.Ci, columns(q), layers[i]->w.of(student) + q * CB * 9 * s.Ci, to);
      const float* const bias = layers[i]->bias.of(student);
      for (int64_t n = 0; n < CB; ++n) to[9 * s.Ci * CB + n] = bias != nullptr && n < columns(q) ? bias[q * CB + n] : 0.0f;
    });
  }

  int64_t columns(int64_t q) const { return s.Co - q * CB < CB ? s.Co - q * CB : CB; }

  // What one thread has for one image.
  struct Here {
    const Sweep& sweep;
    int64_t student, image;
    float* padded;
    float* room;

    // Layer i's output for panel q into a plane.
    float* convolve(int64_t q, int i) {
      float* const z = take(room, sweep.plane);
      const Sweep& w = sweep;
      const float* const packed =
          w.scratch_.floats() + ((student * w.count_ + i) * w.panels + q) * (9 * w.s.Ci + 1) * w.CB;
      w.u.convolve(w.image, padded, packed, packed + 9 * w.s.Ci * w.CB, z);
      return z;
    }
    Plane plane(int64_t q) const {
      return {sweep.s.H, sweep.s.W, sweep.CB, sweep.s.Co, sweep.columns(q), sweep.s.pool, false};
    }
    // The place of panel q in (S, B, C), in (S)[C] and in a pooled plane.
    int64_t statistic(int64_t q) const { return image * sweep.s.Co + q * sweep.CB; }
    int64_t pooled(int64_t q) const {
      const int64_t by = sweep.s.pool ? 2 : 1;
      return image * (sweep.s.H / by) * (sweep.s.W / by) * sweep.s.Co + q * sweep.CB;
    }
  };

  // Calls fn(here, q) for every image and panel, fn(here) for every image. `weight`: convolutions an index costs, or so.
  template <class Fn>
  void for_panels(int weight, const Fn& fn) const {
    parallel_for(s.S * s.B * panels, cost(weight), [&](int64_t job, int thread) {
      Here here = begin(job / panels, thread);
      fn(here, job % panels);
    });
  }
  template <class Fn>
  void for_images(int weight, const Fn& fn) const {
    parallel_for(s.S * s.B, panels * cost(weight), [&](int64_t job, int thread) {
      Here here = begin(job, thread);
      fn(here);
    });
  }

  const FirstShape s;
  const ImageUnits& u;
  const ImagePlane image;
  const int64_t CB, panels, plane;

 private:
  double cost(int weight) const { return weight * product_cost(s.H * s.W * 9 * s.Ci * CB); }

  Here begin(int64_t image_index, int thread) const {
    float* room = scratch_.floats() + (packed_size_ + 15) / 16 * 16 + thread * room_;
    float* const padded = take(room, padded_ - 64);
    u.pad(image, x_ + image_index * s.H * s.W * s.Ci, padded);
    return {*this, image_index / s.B, image_index, padded, room};
  }

  const float* x_;
  const int64_t packed_size_, padded_, room_;
  const int count_;
  const Scratch scratch_;
};

const float* at(Param<float> p, int64_t student, int64_t c) {
  return p.data == nullptr ? nullptr : p.of(student) + c;
}

// The images' parts of parameter gradients: added up in the order of the images, whoever made them.
class Parts {
 public:
  explicit Parts(const Sweep& sweep)
      : w_(sweep),
        rows_(9 * w_.s.Ci + 1),
        taps_(w_.panels * rows_ * w_.CB),
        scratch_(static_cast<size_t>(w_.s.S * w_.s.B * (taps_ + 2 * w_.s.Co)) * sizeof(float)) {}

  float* taps(const Sweep::Here& here, int64_t q) const {
    return scratch_.floats() + here.image * taps_ + q * rows_ * w_.CB;
  }
  float* gamma(const Sweep::Here& here, int64_t q) const {
    return scratch_.floats() + w_.s.S * w_.s.B * taps_ + here.statistic(q);
  }
  float* beta(const Sweep::Here& here, int64_t q) const { return gamma(here, q) + w_.s.S * w_.s.B * w_.s.Co; }

  void add_up(float* gw, float* gb, float* ggamma, float* gbeta) const {
    const FirstShape& s = w_.s;
    const int64_t taps = 9 * s.Ci, CB = w_.CB;
    parallel_for(s.S * w_.panels, pass_cost(s.B * rows_ * CB), [&](int64_t job, int) {
      const int64_t student = job / w_.panels, q = job % w_.panels;
      for (int64_t row = 0; row < rows_; ++row) {
        double sums[64] = {};
        for (int64_t b = 0; b < s.B; ++b) {
          const float* const part = scratch_.floats() + (student * s.B + b) * taps_ + (q * rows_ + row) * CB;
          for (int64_t n = 0; n < CB; ++n) sums[n] += part[n];
        }
        // Row (tap, channel) of a panel is element (n, channel, tap) of the gradient; the last row is the bias's.
        for (int64_t n = 0; n < w_.columns(q); ++n) {
          const int64_t out = student * s.Co + q * CB + n;
          (row == taps ? gb[out] : gw[out * taps + row % s.Ci * 9 + row / s.Ci]) = static_cast<float>(sums[n]);
        }
      }
    });
    const float* const parts = scratch_.floats() + s.S * s.B * taps_;
    for (int64_t i = 0; i < s.S * s.Co; ++i) {
      double gamma = 0, beta = 0;
      for (int64_t b = 0; b < s.B; ++b) {
        const int64_t from = (i / s.Co * s.B + b) * s.Co + i % s.Co;
        gamma += parts[from];
        beta += parts[from + s.S * s.B * s.Co];
      }
      ggamma[i] = static_cast<float>(gamma);
      gbeta[i] = static_cast<float>(beta);
    }
  }

 private:
  const Sweep& w_;
  const int64_t rows_, taps_;
  const Scratch scratch_;
};

}  // namespace

template <class T>
void first_block(const FirstShape& s, const T* x, const FirstLayer<T>& l, double eps, T* p, T* mean, T* rstd) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (together(s)) {
      const FirstLayer<float>* const layers[] = {&l};
      const Sweep sweep(s, x, layers, 1, 1, 0);
      sweep.for_panels(2, [&](Sweep::Here& here, int64_t q) {
        const int64_t c = q * sweep.CB, k = here.statistic(q);
        units<float>().block_forward(here.plane(q), here.convolve(q, 0), at(l.gamma, here.student, c),
                                     at(l.beta, here.student, c), static_cast<float>(eps), p + here.pooled(q), mean + k,
                                     rstd + k);
      });
      return;
    }
  }
  const Apart<T> apart(s, 1);
  T* const z = apart.at(0);
  apart.convolve(x, l, z);
  block_forward<T>(apart.block, z, l.gamma, l.beta, eps, p, mean, rstd);
}

template <class T>
void first_block_backward(const FirstShape& s, const T* gp, const T* x, const FirstLayer<T>& l, const T* mean,
                          const T* rstd, T* gw, T* gb, T* ggamma, T* gbeta) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (together(s)) {
      const FirstLayer<float>* const layers[] = {&l};
      const Sweep sweep(s, x, layers, 1, 2, 0);
      const Parts parts(sweep);
      sweep.for_panels(4, [&](Sweep::Here& here, int64_t q) {
        const int64_t c = q * sweep.CB, k = here.statistic(q);
        const float* const z = here.convolve(q, 0);
        float* const gz = take(here.room, sweep.plane);
        units<float>().block_backward(here.plane(q), gp + here.pooled(q), z, mean + k, rstd + k,
                                      at(l.gamma, here.student, c), at(l.beta, here.student, c), gz, parts.gamma(here, q),
                                      parts.beta(here, q));
        sweep.u.weight_grad(sweep.image, here.padded, gz, parts.taps(here, q));
      });
      parts.add_up(gw, gb, ggamma, gbeta);
      return;
    }
  }
  const Apart<T> apart(s, 2);
  T *const z = apart.at(0), *const gz = apart.at(1);
  apart.convolve(x, l, z);
  block_backward<T>(apart.block, gp, z, mean, rstd, l.gamma, l.beta, gz, ggamma, gbeta);
  apart.weight_grad(gz, x, gw, gb);
}

template <class T>
void first_block_tangent(const FirstShape& s, const T* x, const FirstLayer<T>& l, const FirstLayer<T>& dot, const T* mean,
                         const T* rstd, T* pdot, T* mean_zdot, T* mean_xhat_zdot) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (together(s)) {
      const FirstLayer<float>* const layers[] = {&l, &dot};
      const Sweep sweep(s, x, layers, 2, 2, 0);
      sweep.for_panels(4, [&](Sweep::Here& here, int64_t q) {
        const int64_t c = q * sweep.CB, k = here.statistic(q), i = here.student;
        const float* const z = here.convolve(q, 0);
        const float* const zdot = here.convolve(q, 1);
        units<float>().block_tangent(here.plane(q), z, zdot, mean + k, rstd + k, at(l.gamma, i, c), at(l.beta, i, c),
                                     at(dot.gamma, i, c), at(dot.beta, i, c), pdot + here.pooled(q), mean_zdot + k,
                                     mean_xhat_zdot + k);
      });
      return;
    }
  }
  const Apart<T> apart(s, 2);
  T *const z = apart.at(0), *const zdot = apart.at(1);
  apart.convolve(x, l, z);
  apart.convolve(x, dot, zdot);
  block_tangent<T>(apart.block, z, zdot, mean, rstd, l.gamma, l.beta, dot.gamma, dot.beta, pdot, mean_zdot,
                   mean_xhat_zdot);
}

template <class T>
void first_block_tangent_backward(const FirstShape& s, const T* gp, const T* gpdot, const T* x, const FirstLayer<T>& l,
                                  const FirstLayer<T>& dot, const T* mean, const T* rstd, const T* mean_zdot,
                                  const T* mean_xhat_zdot, T* gxdot, T* gwdot, T* gbdot, T* ggammadot, T* gbetadot) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (together(s)) {
      const FirstLayer<float>* const layers[] = {&l, &dot};
      const ImageUnits& u = image_units();
      const ImagePlane image{s.H, s.W, s.Ci};
      const int64_t tap_panels = (9 * s.Ci + u.panel - 1) / u.panel, taps = tap_panels * u.panel * u.panel;
      const int64_t products = u.products(image);
      const Sweep sweep(s, x, layers, 2, 4, products + u.sums(image) + 128);
      const Parts parts(sweep);
      const Scratch taps_scratch(static_cast<size_t>(s.S * 2 * sweep.panels * taps) * sizeof(float));
      float* const packed = taps_scratch.floats();  // (S, layer and tangent, panels, tap panels, CB, CB)
      parallel_for(s.S * 2 * sweep.panels, pass_cost(taps), [&](int64_t job, int) {
        const int64_t q = job % sweep.panels, i = job / sweep.panels % 2, student = job / (sweep.panels * 2);
        u.pack_taps(s.Ci, sweep.columns(q), layers[i]->w.of(student) + q * u.panel * 9 * s.Ci, packed + job * taps);
      });
      sweep.for_images(8, [&](Sweep::Here& here) {
        float* const sums = take(here.room, u.sums(image));
        float* const spread = take(here.room, products);
        for (int64_t i = 0; i < products; ++i) spread[i] = 0.0f;
        float* const planes = here.room;
        for (int64_t q = 0; q < sweep.panels; ++q) {
          const int64_t c = q * sweep.CB, k = here.statistic(q), i = here.student;
          here.room = planes;
          const float* const z = here.convolve(q, 0);
          const float* const zdot = here.convolve(q, 1);
          float* const gz = take(here.room, sweep.plane);
          float* const gzdot = take(here.room, sweep.plane);
          units<float>().block_tangent_backward(
              here.plane(q), gp + here.pooled(q), gpdot + here.pooled(q), z, zdot, mean + k, rstd + k, mean_zdot + k,
              mean_xhat_zdot + k, at(l.gamma, i, c), at(l.beta, i, c), at(dot.gamma, i, c), gz, gzdot,
              parts.gamma(here, q), parts.beta(here, q));
          sweep.u.weight_grad(image, here.padded, gzdot, parts.taps(here, q));
          const float* const w = packed + (i * 2 * sweep.panels + q) * taps;
          u.spread(image, sweep.columns(q), gzdot, w, gz, w + sweep.panels * taps, spread);
        }
        u.collect(image, spread, sums, gxdot + here.image * s.H * s.W * s.Ci);
      });
      parts.add_up(gwdot, gbdot, ggammadot, gbetadot);
      return;
    }
  }
  const Apart<T> apart(s, 4);
  T *const z = apart.at(0), *const zdot = apart.at(1), *const gz = apart.at(2), *const gzdot = apart.at(3);
  apart.convolve(x, l, z);
  apart.convolve(x, dot, zdot);
  block_tangent_backward<T>(apart.block, gp, gpdot, z, zdot, mean, rstd, mean_zdot, mean_xhat_zdot, l.gamma,
                            l.beta, dot.gamma, gz, gzdot, ggammadot, gbetadot);
  apart.weight_grad(gzdot, x, gwdot, gbdot);
  conv3x3_input_grad(apart.conv, gzdot, l.w.data, l.w.stride_s, gz, dot.w.data, dot.w.stride_s, gxdot);
}

#define MCT_INSTANTIATE(T)                                                                                            \
  template void first_block(const FirstShape&, const T*, const FirstLayer<T>&, double, T*, T*, T*);                    \
  template void first_block_backward(const FirstShape&, const T*, const T*, const FirstLayer<T>&, const T*, const T*,  \
                                     T*, T*, T*, T*);                                                                  \
  template void first_block_tangent(const FirstShape&, const T*, const FirstLayer<T>&, const FirstLayer<T>&, const T*, \
                                    const T*, T*, T*, T*);                                                             \
  template void first_block_tangent_backward(const FirstShape&, const T*, const T*, const T*, const FirstLayer<T>&,    \
                                             const FirstLayer<T>&, const T*, const T*, const T*, const T*, T*, T*, T*, \
                                             T*, T*);
MCT_INSTANTIATE(float)
MCT_INSTANTIATE(double)

}  // namespace mct
