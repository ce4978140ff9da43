// Differentiable siamese augmentation and its transpose, one image a unit. Formulas: mct_fast/data/augment.py.
// A transpose may scatter: all of an image is one thread's, in one order.

#include <cmath>

#include "kernels.h"
#include "parallel.h"

namespace mct {
namespace {

enum Kind : int64_t { kNone, kColor, kCrop, kCutout, kFlip, kScale, kRotate };

// c s x + c (1 - s) mean_C + (1 - c) mean + o; symmetric but for o
template <class T>
void color(const ImageShape& d, const T* x, T offset, T saturation, T contrast, T* out) {
  const int64_t plane = d.H * d.W;
  double parts[8] = {};  // one sum would wait for each of its additions
  int64_t at = 0;
  for (; at + 8 <= d.C * plane; at += 8) {
    for (int k = 0; k < 8; ++k) parts[k] += x[at + k];
  }
  for (; at < d.C * plane; ++at) parts[0] += x[at];
  const double total = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
  const T rest = (1 - contrast) * static_cast<T>(total / static_cast<double>(d.C * plane)) + offset;
  const T own = contrast * saturation, pixel = contrast * (1 - saturation) / static_cast<T>(d.C);
  for (int64_t i = 0; i < plane; ++i) {
    T sum = 0;
    for (int64_t c = 0; c < d.C; ++c) sum += x[c * plane + i];
    for (int64_t c = 0; c < d.C; ++c) out[c * plane + i] = own * x[c * plane + i] + pixel * sum + rest;
  }
}

// out[i, j] = x[i + u, j + v], 0 outside
template <class T>
void crop(const ImageShape& d, const T* x, int64_t u, int64_t v, T* out) {
  for (int64_t c = 0; c < d.C; ++c) {
    for (int64_t i = 0; i < d.H; ++i) {
      T* row = out + (c * d.H + i) * d.W;
      const bool inside = i + u >= 0 && i + u < d.H;
      const T* from = x + (c * d.H + i + u) * d.W;
      for (int64_t j = 0; j < d.W; ++j) row[j] = inside && j + v >= 0 && j + v < d.W ? from[j + v] : T(0);
    }
  }
}

template <class T>
void cutout(const ImageShape& d, const T* x, const float* p, T* out) {
  for (int64_t c = 0; c < d.C; ++c) {
    for (int64_t i = 0; i < d.H; ++i) {
      const int64_t at = (c * d.H + i) * d.W;
      const bool hit = static_cast<float>(i) >= p[0] && static_cast<float>(i) < p[1];
      for (int64_t j = 0; j < d.W; ++j) {
        const bool gone = hit && static_cast<float>(j) >= p[2] && static_cast<float>(j) < p[3];
        out[at + j] = gone ? T(0) : x[at + j];
      }
    }
  }
}

template <class T>
void flip(const ImageShape& d, const T* x, bool mirrored, T* out) {
  for (int64_t r = 0; r < d.C * d.H; ++r) {
    for (int64_t j = 0; j < d.W; ++j) out[r * d.W + j] = x[r * d.W + (mirrored ? d.W - 1 - j : j)];
  }
}

// Bilinear sampling at one point: up to four pixels and their weights; pixels outside the image have weight 0.
template <class T>
struct Taps {
  int64_t at[4];
  T weight[4];

  Taps(const ImageShape& d, T row, T column) {
    // beyond the image by more than a pixel nothing is sampled; this also keeps NaN and huge values out of the casts
    const bool near = row > T(-1) && row < static_cast<T>(d.H) && column > T(-1) && column < static_cast<T>(d.W);
    // a cast truncates, which is floor for what is positive; where adding 1 rounds up, the weights still fit
    const int r0 = near ? static_cast<int>(row + 1) - 1 : -2, c0 = near ? static_cast<int>(column + 1) - 1 : -2;
    const T fr = row - static_cast<T>(r0), fc = column - static_cast<T>(c0);
    const T wr[2] = {1 - fr, fr}, wc[2] = {1 - fc, fc};
    for (int k = 0; k < 4; ++k) {
      const int r = r0 + k / 2, c = c0 + k % 2;
      const bool inside = r >= 0 && r < d.H && c >= 0 && c < d.W;
      at[k] = inside ? r * d.W + c : 0;
      weight[k] = inside ? wr[k / 2] * wc[k % 2] : T(0);
    }
  }
};

// out = bilinear(x, point(i, j)), or its transpose
template <class T, class Point>
void resample(const ImageShape& d, const T* x, bool transpose, T* out, const Point& point) {
  const int64_t plane = d.H * d.W;
  if (transpose) {
    for (int64_t i = 0; i < d.C * plane; ++i) out[i] = 0;
  }
  for (int64_t i = 0; i < d.H; ++i) {
    for (int64_t j = 0; j < d.W; ++j) {
      T row, column;
      point(i, j, row, column);
      const Taps<T> taps(d, row, column);
      for (int64_t c = 0; c < d.C; ++c) {
        if (transpose) {
          const T g = x[c * plane + i * d.W + j];
          for (int k = 0; k < 4; ++k) out[c * plane + taps.at[k]] += taps.weight[k] * g;
        } else {
          T sum = 0;
          for (int k = 0; k < 4; ++k) sum += taps.weight[k] * x[c * plane + taps.at[k]];
          out[c * plane + i * d.W + j] = sum;
        }
      }
    }
  }
}

template <class T>
void one_image(const ImageShape& d, const T* x, int64_t kind, const float* p, bool transpose, T* out) {
  const T h = static_cast<T>(d.H - 1) / 2, w = static_cast<T>(d.W - 1) / 2;
  switch (kind) {
    case kColor:
      return color(d, x, transpose ? T(0) : static_cast<T>(p[0]), static_cast<T>(p[1]), static_cast<T>(p[2]), out);
    case kCrop: {
      // shifts beyond the image leave nothing: clamped, so that no index overflows
      const float u = std::fmax(std::fmin(p[0], static_cast<float>(d.H)), -static_cast<float>(d.H));
      const float v = std::fmax(std::fmin(p[1], static_cast<float>(d.W)), -static_cast<float>(d.W));
      const int64_t sign = transpose ? -1 : 1;
      return crop(d, x, sign * static_cast<int64_t>(u), sign * static_cast<int64_t>(v), out);
    }
    case kCutout: return cutout(d, x, p, out);
    case kFlip: return flip(d, x, p[0] > 0.5f, out);
    case kScale: {
      const T u = static_cast<T>(p[0]), v = static_cast<T>(p[1]);
      return resample(d, x, transpose, out, [&](int64_t i, int64_t j, T& row, T& column) {
        row = u * (static_cast<T>(i) - h) + h;
        column = v * (static_cast<T>(j) - w) + w;
      });
    }
    case kRotate: {
      const T cosine = static_cast<T>(p[0]), sine = static_cast<T>(p[1]);
      return resample(d, x, transpose, out, [&](int64_t i, int64_t j, T& row, T& column) {
        const T y = static_cast<T>(i) - h, z = static_cast<T>(j) - w;
        column = cosine * z - sine * y * w / h + w;
        row = sine * z * h / w + cosine * y + h;
      });
    }
    default: {
      for (int64_t i = 0; i < d.C * d.H * d.W; ++i) out[i] = x[i];
    }
  }
}

}  // namespace

template <class T>
void dsa(const ImageShape& d, const T* x, const int64_t* kinds, const float* params, bool transpose, T* out) {
  const int64_t size = d.C * d.H * d.W;
  parallel_for(d.S * d.B, pass_cost(8 * size), [&](int64_t image, int) {
    one_image(d, x + image * size, kinds[image / d.B], params + 4 * image, transpose, out + image * size);
  });
}

template void dsa(const ImageShape&, const float*, const int64_t*, const float*, bool, float*);
template void dsa(const ImageShape&, const double*, const int64_t*, const float*, bool, double*);

}  // namespace mct
