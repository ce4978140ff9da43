// The convolutions in double, the dtype of checks: plain loops whose sums have one order, whatever the number of threads.

#include <algorithm>
#include <vector>

#include "conv3x3.h"
#include "parallel.h"

namespace mct {
namespace {

constexpr int64_t kTaps = 9, kRows = 8;

// One convolution: `in` channels of x to `out` channels, weights packed as [tap][in][out].
struct Factor {
  const double* x;
  std::vector<double> w;
};

// w is (S)[Co][Ci][9]. For the adjoint the channels change places and the taps are reversed.
std::vector<double> packed(const ConvShape& s, const double* w, int64_t stride_s, bool adjoint) {
  std::vector<double> to(static_cast<size_t>(s.S * kTaps * s.Ci * s.Co));
  for (int64_t n = 0; n < s.S; ++n) {
    for (int64_t o = 0; o < s.Co; ++o) {
      for (int64_t i = 0; i < s.Ci; ++i) {
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          const double value = w[n * stride_s + (o * s.Ci + i) * kTaps + tap];
          const int64_t at = n * kTaps + (adjoint ? kTaps - 1 - tap : tap);
          to[static_cast<size_t>(adjoint ? (at * s.Co + o) * s.Ci + i : (at * s.Ci + i) * s.Co + o)] = value;
        }
      }
    }
  }
  return to;
}

// One row of pixels z (W, out) += the taps of three rows of x.
void add_row(const ConvShape& s, int64_t in, int64_t out, const double* image, const double* w, int64_t row, double* z) {
  for (int64_t tap = 0; tap < kTaps; ++tap) {
    const int64_t h = row + tap / 3 - 1, shift = tap % 3 - 1;
    if (h < 0 || h >= s.H) continue;
    const int64_t first = std::max<int64_t>(0, -shift), last = std::min(s.W, s.W - shift);
    for (int64_t i = 0; i < in; ++i) {
      const double* weights = w + (tap * in + i) * out;
      for (int64_t p = first; p < last; ++p) {
        const double value = image[(h * s.W + p + shift) * in + i];
        double* to = z + p * out;
        for (int64_t o = 0; o < out; ++o) to[o] += value * weights[o];
      }
    }
  }
}

void convolve(const ConvShape& s, int64_t in, int64_t out, const std::vector<Factor>& factors, const double* bias,
              int64_t b_stride_s, double* z) {
  const int64_t pixels = s.H * s.W;
  parallel_for(s.S * s.B * s.H, product_cost(8 * kTaps * s.W * in * out), [&](int64_t n, int) {
    const int64_t image = n / s.H, student = image / s.B, row = n % s.H;
    double* to = z + (image * pixels + row * s.W) * out;
    for (int64_t p = 0; p < s.W; ++p) {
      for (int64_t o = 0; o < out; ++o) to[p * out + o] = bias == nullptr ? 0.0 : bias[student * b_stride_s + o];
    }
    for (const Factor& f : factors) {
      add_row(s, in, out, f.x + image * pixels * in, f.w.data() + student * kTaps * in * out, row, to);
    }
  });
}

// sums (kRows, Co) += for up to kRows channels of x from `first` on: x shifted by a tap, times g, over all pixels.
void add_products(const ConvShape& s, const double* g, const double* x, int64_t tap, int64_t first, int64_t count,
                  double* sums) {
  const int64_t down = tap / 3 - 1, shift = tap % 3 - 1;
  for (int64_t row = 0; row < s.B * s.H; ++row) {
    const int64_t h = row % s.H + down;
    if (h < 0 || h >= s.H) continue;
    for (int64_t p = std::max<int64_t>(0, -shift); p < std::min(s.W, s.W - shift); ++p) {
      const double* values = x + ((row + down) * s.W + p + shift) * s.Ci + first;
      const double* grads = g + (row * s.W + p) * s.Co;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t o = 0; o < s.Co; ++o) sums[i * s.Co + o] += values[i] * grads[o];
      }
    }
  }
}

}  // namespace

void conv3x3_forward(const ConvShape& s, const double* x, const double* w, int64_t w_stride_s, const double* bias,
                     int64_t b_stride_s, const double* x2, const double* w2, int64_t w2_stride_s, double* z) {
  std::vector<Factor> factors{{x, packed(s, w, w_stride_s, false)}};
  if (x2 != nullptr) factors.push_back({x2, packed(s, w2, w2_stride_s, false)});
  convolve(s, s.Ci, s.Co, factors, bias, b_stride_s, z);
}

void conv3x3_input_grad(const ConvShape& s, const double* g, const double* w, int64_t w_stride_s, const double* g2,
                        const double* w2, int64_t w2_stride_s, double* gx) {
  std::vector<Factor> factors{{g, packed(s, w, w_stride_s, true)}};
  if (g2 != nullptr) factors.push_back({g2, packed(s, w2, w2_stride_s, true)});
  convolve(s, s.Co, s.Ci, factors, nullptr, 0, gx);
}

void conv3x3_weight_grad(const ConvShape& s, const double* g, const double* x, const double* g2, const double* x2,
                         double* gw, int64_t gw_stride_s, double* gb, int64_t gb_stride_s) {
  const int64_t pixels = s.B * s.H * s.W, groups = (s.Ci + kRows - 1) / kRows;
  parallel_for(s.S * kTaps * groups, product_cost(8 * pixels * kRows * s.Co), [&](int64_t n, int) {
    const int64_t student = n / (kTaps * groups), tap = n / groups % kTaps, first = n % groups * kRows;
    const int64_t count = std::min(kRows, s.Ci - first);
    std::vector<double> sums(static_cast<size_t>(kRows * s.Co));
    const int64_t gs = student * pixels * s.Co, xs = student * pixels * s.Ci;
    add_products(s, g + gs, x + xs, tap, first, count, sums.data());
    if (g2 != nullptr) add_products(s, g2 + gs, x2 + xs, tap, first, count, sums.data());
    double* to = gw + student * gw_stride_s;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t o = 0; o < s.Co; ++o) {
        to[(o * s.Ci + first + i) * kTaps + tap] = sums[static_cast<size_t>(i * s.Co + o)];
      }
    }
  });
  if (gb == nullptr) return;
  parallel_for(s.S, pass_cost(2 * pixels * s.Co), [&](int64_t student, int) {
    double* to = gb + student * gb_stride_s;
    std::fill(to, to + s.Co, 0.0);
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t o = 0; o < s.Co; ++o) to[o] += g[(student * pixels + p) * s.Co + o];
    }
  });
}

}  // namespace mct
