// Norm -> ReLU -> pool and its derivatives: one image and a tile of channels a thread block.
//
// A thread owns one channel and every rows-th window of the plane (2x2 pixels, or one without a pool). What several passes
// read of z and zdot waits in shared memory, each value where the thread that read it finds it again; a plane that does not
// fit is read again from memory instead. Neighbouring threads hold neighbouring channels, which lie side by side in NHWC.
// Sums over a plane are made per thread, then by a tree; sums over images by a second kernel, in double.

#include "common.cuh"
#include "kernels.h"

namespace mct::cuda {
namespace {

using device::cotangent;
using device::cotangent_dot;
using device::cotangent_dot_terms;
using device::cotangent_terms;
using device::masked;
using device::normalised;
using device::normalised_dot;
using device::scaled;
using device::scaled_dot;
using device::tangent_terms;

constexpr int kThreads = 512;                 // of a block, at most
constexpr int kSums = 4;                      // sums that a kernel makes at once, at most
constexpr std::size_t kShared = 72 << 10;     // bytes of planes a block takes if it can choose: three blocks fit on an H100
constexpr int64_t kPlane = int64_t{1} << 31;  // an image has fewer numbers

// q / d by one multiplication; exact while q * d < 2^32.
struct Divider {
  uint32_t d, m;
  explicit Divider(uint32_t by) : d(by), m(by == 1 ? 0 : static_cast<uint32_t>((uint64_t{1} << 32) / by + 1)) {}
  __device__ int operator()(int q) const { return d == 1 ? q : static_cast<int>(__umulhi(static_cast<uint32_t>(q), m)); }
};

// How a call is cut up.
struct Cut {
  int H, W, C, B;
  int rows, columns;        // of windows
  int width, lanes;         // channels and threads a channel of a block, powers of two
  int tiles;                // blocks an image
  Divider by_columns{1};
  __device__ int pixels() const { return H * W; }
  __device__ int windows() const { return rows * columns; }
};

// One thread's part of the work.
template <class T, int Window>
struct Part {
  const Cut& cut;
  int lane, row, channel;
  bool alive;
  int64_t image, student;

  __device__ explicit Part(const Cut& c) : cut(c) {
    lane = threadIdx.x & (c.width - 1);
    row = threadIdx.x / c.width;
    const int64_t block = blockIdx.x;
    image = block / c.tiles;
    student = image / c.B;
    channel = static_cast<int>(block - image * c.tiles) * c.width + lane;
    alive = channel < c.C;
  }

  // Where this channel of the image's plane of `pixels` pixels begins.
  __device__ int64_t plane(int pixels) const { return image * pixels * cut.C + channel; }
  __device__ int64_t statistic() const { return image * cut.C + channel; }

  __device__ T parameter(Param<T> p, T absent) const {
    return p.data == nullptr || !alive ? absent : p.of(student)[channel];
  }

  // fn(window, its first pixel) for this thread's windows
  template <class Fn>
  __device__ void windows(const Fn& fn) const {
    const int count = alive ? cut.windows() : 0;
    for (int q = row; q < count; q += cut.lanes) {
      const int i = cut.by_columns(q);
      fn(q, (i * cut.W + (q - i * cut.columns)) * Window);
    }
  }

  // fn(pixel) for this thread's pixels outside of any window: an odd last column and row
  template <class Fn>
  __device__ void rest(const Fn& fn) const {
    if constexpr (Window > 1) {
      const int column = cut.W % 2 ? cut.H : 0, bottom = cut.H % 2 ? cut.columns * 2 : 0;
      const int count = alive ? column + bottom : 0;
      for (int r = row; r < count; r += cut.lanes) {
        fn(r < column ? r * cut.W + cut.W - 1 : (cut.H - 1) * cut.W + r - column);
      }
    }
  }
};

// fn(offset from the window's first pixel)
template <int Window, class Fn>
__device__ __forceinline__ void in_window(int W, const Fn& fn) {
#pragma unroll
  for (int dy = 0; dy < Window; ++dy) {
#pragma unroll
    for (int dx = 0; dx < Window; ++dx) fn(dy * W + dx);
  }
}

// One channel of a plane, kept in shared memory between the passes where it fits.
template <class T, bool Kept>
struct Values {
  const T* global;
  T* kept;
  int stride, width;

  __device__ Values(const T* plane, T* shared, const Cut& cut, int lane)
      : global(plane), kept(shared + lane), stride(cut.C), width(cut.width) {}

  __device__ T first(int pixel) const {
    const T v = __ldg(global + pixel * stride);
    if constexpr (Kept) kept[pixel * width] = v;
    return v;
  }
  __device__ T again(int pixel) const {
    if constexpr (Kept) return kept[pixel * width];
    return __ldg(global + pixel * stride);
  }
};

__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }

template <class T>
struct ForwardArgs {
  Cut cut;
  const T* z;
  Param<T> gamma, beta;
  T eps;
  T *p, *mean, *rstd;
};

template <class T, int Window, bool Kept>
__global__ void __launch_bounds__(kThreads) forward_kernel(const ForwardArgs<T> a) {
  const Cut& cut = a.cut;
  const Part<T, Window> part(cut);
  T* shared = shared_memory<T>();
  const Values<T, Kept> z(a.z + part.plane(cut.pixels()), shared, cut, part.lane);
  const bool norm = a.gamma.data != nullptr;
  T mean = 0, rstd = 1;
  if (norm) {
    T* scratch = shared + (Kept ? cut.pixels() * cut.width : 0);
    const T count = static_cast<T>(cut.pixels());
    T sum[1] = {};
    part.windows([&](int, int at) { in_window<Window>(cut.W, [&](int d) { sum[0] += z.first(at + d); }); });
    part.rest([&](int at) { sum[0] += z.first(at); });
    sum_rows(sum, scratch, part.lane, part.row, cut.width, cut.lanes);
    mean = sum[0] / count;
    const auto squared = [&](int at) {
      const T d = z.again(at) - mean;
      return d * d;
    };
    sum[0] = 0;
    part.windows([&](int, int at) { in_window<Window>(cut.W, [&](int d) { sum[0] += squared(at + d); }); });
    part.rest([&](int at) { sum[0] += squared(at); });
    sum_rows(sum, scratch, part.lane, part.row, cut.width, cut.lanes);
    rstd = T(1) / root(sum[0] / count + a.eps);
  }
  if (part.alive && part.row == 0) {
    a.mean[part.statistic()] = mean;
    a.rstd[part.statistic()] = rstd;
  }
  const T gamma = part.parameter(a.gamma, T(1)), beta = part.parameter(a.beta, T(0));
  T* out = a.p + part.plane(cut.windows());
  part.windows([&](int q, int at) {
    T total = 0;
    in_window<Window>(cut.W, [&](int d) {
      const T value = norm ? z.again(at + d) : __ldg(z.global + (at + d) * z.stride);
      const T u = scaled(normalised(value, mean, rstd), gamma, beta);
      total += masked(u, u);
    });
    out[q * cut.C] = total * (T(1) / (Window * Window));
  });
}

template <class T>
struct BackwardArgs {
  Cut cut;
  const T *gp, *z, *mean, *rstd;
  Param<T> gamma, beta;
  T *gz, *ggamma, *gbeta;  // the last two: parts, one an image
};

template <class T, int Window, bool Kept>
__global__ void __launch_bounds__(kThreads) backward_kernel(const BackwardArgs<T> a) {
  const Cut& cut = a.cut;
  const Part<T, Window> part(cut);
  T* shared = shared_memory<T>();
  const Values<T, Kept> z(a.z + part.plane(cut.pixels()), shared, cut, part.lane);
  const T* gp = a.gp + part.plane(cut.windows());
  const bool norm = a.gamma.data != nullptr;
  const T mean = norm && part.alive ? a.mean[part.statistic()] : T(0);
  const T rstd = norm && part.alive ? a.rstd[part.statistic()] : T(1);
  const T gamma = part.parameter(a.gamma, T(1)), beta = part.parameter(a.beta, T(0));
  constexpr T share = T(1) / (Window * Window);
  T sum[2] = {};  // gu, gu xhat
  if (norm) {
    part.windows([&](int q, int at) {
      const T up = __ldg(gp + q * cut.C);
      in_window<Window>(cut.W, [&](int d) {
        const T x = normalised(z.first(at + d), mean, rstd);
        const T gu = masked(scaled(x, gamma, beta), up);
        sum[0] += gu;
        sum[1] += gu * x;
      });
    });
    sum_rows(sum, shared + (Kept ? cut.pixels() * cut.width : 0), part.lane, part.row, cut.width, cut.lanes);
  }
  T ca, cb, cc;
  cotangent_terms(gamma, rstd, share, static_cast<T>(cut.pixels()), sum[0], sum[1], ca, cb, cc);
  if (part.alive && part.row == 0) {
    a.gbeta[part.statistic()] = sum[0] * share;
    a.ggamma[part.statistic()] = sum[1] * share;
  }
  T* out = a.gz + part.plane(cut.pixels());
  part.windows([&](int q, int at) {
    const T up = __ldg(gp + q * cut.C);
    in_window<Window>(cut.W, [&](int d) {
      const T value = norm ? z.again(at + d) : __ldg(z.global + (at + d) * z.stride);
      const T x = normalised(value, mean, rstd);
      out[(at + d) * cut.C] = cotangent(masked(scaled(x, gamma, beta), up), x, ca, cb, cc);
    });
  });
  part.rest([&](int at) {
    const T x = normalised(__ldg(z.global + at * z.stride), mean, rstd);
    out[at * cut.C] = cotangent(T(0), x, ca, cb, cc);
  });
}

template <class T>
struct TangentArgs {
  Cut cut;
  const T *z, *zdot, *mean, *rstd;
  Param<T> gamma, beta, gammadot, betadot;
  T *pdot, *mean_zdot, *mean_xhat_zdot;
};

template <class T, int Window, bool Kept>
__global__ void __launch_bounds__(kThreads) tangent_kernel(const TangentArgs<T> a) {
  const Cut& cut = a.cut;
  const Part<T, Window> part(cut);
  T* shared = shared_memory<T>();
  const int kept = Kept ? cut.pixels() * cut.width : 0;
  const Values<T, Kept> z(a.z + part.plane(cut.pixels()), shared, cut, part.lane);
  const Values<T, Kept> zdot(a.zdot + part.plane(cut.pixels()), shared + kept, cut, part.lane);
  const bool norm = a.gamma.data != nullptr;
  const T mean = norm && part.alive ? a.mean[part.statistic()] : T(0);
  const T rstd = norm && part.alive ? a.rstd[part.statistic()] : T(1);
  const T gamma = part.parameter(a.gamma, T(1)), beta = part.parameter(a.beta, T(0));
  T sum[2] = {};  // zdot, zdot xhat
  if (norm) {
    const auto add = [&](int at) {
      const T d = zdot.first(at);
      sum[0] += d;
      sum[1] += d * normalised(z.first(at), mean, rstd);
    };
    part.windows([&](int, int at) { in_window<Window>(cut.W, [&](int d) { add(at + d); }); });
    part.rest(add);
    sum_rows(sum, shared + 2 * kept, part.lane, part.row, cut.width, cut.lanes);
  }
  const T count = static_cast<T>(cut.pixels()), m1 = sum[0] / count, m2 = sum[1] / count;
  if (part.alive && part.row == 0) {
    a.mean_zdot[part.statistic()] = m1;
    a.mean_xhat_zdot[part.statistic()] = m2;
  }
  T by_zdot, by_xhat, rest;
  tangent_terms(gamma, part.parameter(a.gammadot, T(0)), part.parameter(a.betadot, T(0)), rstd, m1, m2, by_zdot, by_xhat,
                rest);
  T* out = a.pdot + part.plane(cut.windows());
  part.windows([&](int q, int at) {
    T total = 0;
    in_window<Window>(cut.W, [&](int d) {
      const T value = norm ? z.again(at + d) : __ldg(z.global + (at + d) * z.stride);
      const T dot = norm ? zdot.again(at + d) : __ldg(zdot.global + (at + d) * zdot.stride);
      const T x = normalised(value, mean, rstd);
      total += masked(scaled(x, gamma, beta), scaled_dot(dot, x, by_zdot, by_xhat, rest));
    });
    out[q * cut.C] = total * (T(1) / (Window * Window));
  });
}

template <class T>
struct TangentBackwardArgs {
  Cut cut;
  const T *gp, *gpdot, *z, *zdot, *mean, *rstd, *mean_zdot, *mean_xhat_zdot;
  Param<T> gamma, beta, gammadot;
  T *gz, *gzdot, *ggammadot, *gbetadot;  // the last two: parts, one an image
};

template <class T, int Window, bool Kept>
__global__ void __launch_bounds__(kThreads) tangent_backward_kernel(const TangentBackwardArgs<T> a) {
  const Cut& cut = a.cut;
  const Part<T, Window> part(cut);
  T* shared = shared_memory<T>();
  const int kept = Kept ? cut.pixels() * cut.width : 0;
  const Values<T, Kept> z(a.z + part.plane(cut.pixels()), shared, cut, part.lane);
  const Values<T, Kept> zdot(a.zdot + part.plane(cut.pixels()), shared + kept, cut, part.lane);
  const T *gp = a.gp + part.plane(cut.windows()), *gpdot = a.gpdot + part.plane(cut.windows());
  const bool norm = a.gamma.data != nullptr, given = norm && part.alive;
  const T mean = given ? a.mean[part.statistic()] : T(0), rstd = given ? a.rstd[part.statistic()] : T(1);
  const T gamma = part.parameter(a.gamma, T(1)), beta = part.parameter(a.beta, T(0));
  const T rm1 = given ? rstd * a.mean_zdot[part.statistic()] : T(0);
  const T rm2 = given ? rstd * a.mean_xhat_zdot[part.statistic()] : T(0);
  constexpr T share = T(1) / (Window * Window);
  T sum[4] = {};  // gu, gu xhat, gudot, gu xhatdot + gudot xhat
  if (norm) {
    part.windows([&](int q, int at) {
      const T up = __ldg(gp + q * cut.C), updot = __ldg(gpdot + q * cut.C);
      in_window<Window>(cut.W, [&](int d) {
        const T x = normalised(z.first(at + d), mean, rstd);
        const T xdot = normalised_dot(zdot.first(at + d), x, rstd, rm1, rm2);
        const T u = scaled(x, gamma, beta), gu = masked(u, up), gud = masked(u, updot);
        sum[0] += gu;
        sum[1] += gu * x;
        sum[2] += gud;
        sum[3] += gud * x;
        sum[3] += gu * xdot;
      });
    });
    sum_rows(sum, shared + 2 * kept, part.lane, part.row, cut.width, cut.lanes);
  }
  const T count = static_cast<T>(cut.pixels());
  T ca, cb, cc, cd, ce, ch;
  cotangent_terms(gamma, rstd, share, count, sum[0], sum[1], ca, cb, cc);
  cotangent_dot_terms(part.parameter(a.gammadot, T(0)), rstd, share, count, ca, sum[0], sum[1], sum[2], sum[3], cd, ce, ch);
  if (part.alive && part.row == 0) {
    a.gbetadot[part.statistic()] = sum[2] * share;
    a.ggammadot[part.statistic()] = sum[3] * share;
  }
  T *out = a.gz + part.plane(cut.pixels()), *outdot = a.gzdot + part.plane(cut.pixels());
  const auto put = [&](int at, T value, T dot, T up, T updot) {
    const T x = normalised(value, mean, rstd), xdot = normalised_dot(dot, x, rstd, rm1, rm2);
    const T u = scaled(x, gamma, beta), gu = masked(u, up), gud = masked(u, updot);
    const T v = cotangent(gu, x, ca, cb, cc);
    out[at * cut.C] = v;
    outdot[at * cut.C] = cotangent_dot(v, gu, gud, x, xdot, ca, cc, cd, ce, ch, rm2);
  };
  part.windows([&](int q, int at) {
    const T up = __ldg(gp + q * cut.C), updot = __ldg(gpdot + q * cut.C);
    in_window<Window>(cut.W, [&](int d) {
      const T value = norm ? z.again(at + d) : __ldg(z.global + (at + d) * z.stride);
      const T dot = norm ? zdot.again(at + d) : __ldg(zdot.global + (at + d) * zdot.stride);
      put(at + d, value, dot, up, updot);
    });
  });
  part.rest([&](int at) {
    put(at, __ldg(z.global + at * z.stride), __ldg(zdot.global + at * zdot.stride), T(0), T(0));
  });
}

constexpr int kImageLanes = 8;

template <class T>
struct ImagesArgs {
  int B, C;
  const T *parts, *parts2;
  T *out, *out2;
};

// out (S, C) = sum over the images of parts (S, B, C), for two such pairs, in double
template <class T>
__global__ void __launch_bounds__(32 * kImageLanes) sum_images_kernel(const ImagesArgs<T> a) {
  __shared__ double scratch[2 * 32 * kImageLanes];
  const int B = a.B, C = a.C;
  const int lane = threadIdx.x & 31, row = threadIdx.x / 32, channel = blockIdx.x * 32 + lane;
  const int64_t student = blockIdx.y;
  double sum[2] = {};
  if (channel < C) {
    for (int b = row; b < B; b += kImageLanes) {
      const int64_t at = (student * B + b) * C + channel;
      sum[0] += static_cast<double>(__ldg(a.parts + at));
      sum[1] += static_cast<double>(__ldg(a.parts2 + at));
    }
  }
  sum_rows(sum, scratch, lane, row, 32, kImageLanes);
  if (channel < C && row == 0) {
    a.out[student * C + channel] = static_cast<T>(sum[0]);
    a.out2[student * C + channel] = static_cast<T>(sum[1]);
  }
}

// ----------------------------------------------------------------------------------------------------------- launch

int power_of_two(int64_t at_most, int limit) {
  int found = 1;
  while (found * 2 <= limit && found * 2 <= at_most) found *= 2;
  return found;
}

struct Plan {
  Cut cut;
  bool kept;
  unsigned blocks, threads;
  std::size_t shared;
};

// The shared memory that one block may have on the current device.
std::size_t shared_limit() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 48 << 10;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 48 << 10;
  return static_cast<std::size_t>(bytes);
}

// `planes`: how many the passes share; 0 without a norm, when there is one pass.
template <class T>
Plan plan(const BlockShape& s, int planes) {
  const int by = s.pool ? 2 : 1;
  Plan p{};
  p.cut = {static_cast<int>(s.H), static_cast<int>(s.W), static_cast<int>(s.C), static_cast<int>(s.B),
           static_cast<int>(s.H / by), static_cast<int>(s.W / by), 0, 0, 0, Divider(static_cast<uint32_t>(s.W / by))};
  const std::size_t limit = shared_limit();
  const auto bytes = [&](int width) { return planes * sizeof(T) * static_cast<std::size_t>(s.H * s.W) * width; };
  const auto scratch = kSums * kThreads * sizeof(T);
  int width = 0;
  for (const int w : {32, 16, 8}) {  // 8 channels are a sector of memory, the least that a read brings
    if (width == 0 && bytes(w) <= kShared && bytes(w) + scratch <= limit) width = w;
  }
  for (const int w : {8, 4}) {
    if (width == 0 && bytes(w) + scratch <= limit) width = w;
  }
  p.kept = planes > 0 && width > 0;
  p.cut.width = p.kept ? width : 32;
  p.cut.lanes = power_of_two(int64_t{p.cut.rows} * p.cut.columns, kThreads / p.cut.width);
  p.cut.tiles = static_cast<int>((s.C + p.cut.width - 1) / p.cut.width);
  p.threads = static_cast<unsigned>(p.cut.width * p.cut.lanes);
  p.blocks = static_cast<unsigned>(s.S * s.B * p.cut.tiles);
  p.shared = (p.kept ? bytes(p.cut.width) : 0) + (planes > 0 ? kSums * p.threads * sizeof(T) : 0);
  return p;
}

const char* refused(const BlockShape& s) {
  if (s.H * s.W * s.C >= kPlane || (s.W * s.H) * s.W >= (int64_t{1} << 32)) return "an image has too many numbers";
  if (s.S * s.B * s.C >= kPlane || s.S > 65535) return "too many images and students for one call";
  return nullptr;
}

template <class Args>
const char* start(void (*kernel)(Args), const Plan& p, const Args& args, Stream stream) {
  if (p.shared > (48 << 10)) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(p.shared));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  launch(kernel, dim3(p.blocks), p.threads, p.shared, stream, args);
  return last_error();
}

// Chooses among a kernel's forms; without a norm there is one pass, which keeps nothing.
#define MCT_START(kernel, T, pool, p, args, stream)                                                        \
  (pool ? ((p).kept ? start(kernel<T, 2, true>, p, args, stream) : start(kernel<T, 2, false>, p, args, stream)) \
        : ((p).kept ? start(kernel<T, 1, true>, p, args, stream) : start(kernel<T, 1, false>, p, args, stream)))

template <class T>
const char* sum_images(const BlockShape& s, const T* parts, const T* parts2, T* out, T* out2, Stream stream) {
  const dim3 grid(static_cast<unsigned>((s.C + 31) / 32), static_cast<unsigned>(s.S));
  const ImagesArgs<T> args{static_cast<int>(s.B), static_cast<int>(s.C), parts, parts2, out, out2};
  launch(sum_images_kernel<T>, grid, 32 * kImageLanes, 0, stream, args);
  return last_error();
}

}  // namespace

template <class T>
const char* block_forward(const BlockShape& s, const T* z, Param<T> gamma, Param<T> beta, double eps, T* p, T* mean,
                          T* rstd, Stream stream) {
  if (const char* why = refused(s)) return why;
  const Plan cut = plan<T>(s, gamma.data != nullptr ? 1 : 0);
  const ForwardArgs<T> args{cut.cut, z, gamma, beta, static_cast<T>(eps), p, mean, rstd};
  return MCT_START(forward_kernel, T, s.pool, cut, args, stream);
}

template <class T>
const char* block_backward(const BlockShape& s, const T* gp, const T* z, const T* mean, const T* rstd, Param<T> gamma,
                           Param<T> beta, T* gz, T* ggamma, T* gbeta, T* parts, Stream stream) {
  if (const char* why = refused(s)) return why;
  const Plan cut = plan<T>(s, gamma.data != nullptr ? 1 : 0);
  T* parts2 = parts + s.S * s.B * s.C;
  const BackwardArgs<T> args{cut.cut, gp, z, mean, rstd, gamma, beta, gz, parts, parts2};
  if (const char* why = MCT_START(backward_kernel, T, s.pool, cut, args, stream)) return why;
  return sum_images(s, parts, parts2, ggamma, gbeta, stream);
}

template <class T>
const char* block_tangent(const BlockShape& s, const T* z, const T* zdot, const T* mean, const T* rstd, Param<T> gamma,
                          Param<T> beta, Param<T> gammadot, Param<T> betadot, T* pdot, T* mean_zdot, T* mean_xhat_zdot,
                          Stream stream) {
  if (const char* why = refused(s)) return why;
  const Plan cut = plan<T>(s, gamma.data != nullptr ? 2 : 0);
  const TangentArgs<T> args{cut.cut,  z,        zdot,    mean, rstd,      gamma,
                            beta,     gammadot, betadot, pdot, mean_zdot, mean_xhat_zdot};
  return MCT_START(tangent_kernel, T, s.pool, cut, args, stream);
}

template <class T>
const char* block_tangent_backward(const BlockShape& s, const T* gp, const T* gpdot, const T* z, const T* zdot,
                                   const T* mean, const T* rstd, const T* mean_zdot, const T* mean_xhat_zdot,
                                   Param<T> gamma, Param<T> beta, Param<T> gammadot, T* gz, T* gzdot, T* ggammadot,
                                   T* gbetadot, T* parts, Stream stream) {
  if (const char* why = refused(s)) return why;
  const Plan cut = plan<T>(s, gamma.data != nullptr ? 2 : 0);
  T* parts2 = parts + s.S * s.B * s.C;
  const TangentBackwardArgs<T> args{cut.cut, gp,    gpdot, z,        zdot, mean,  rstd,  mean_zdot, mean_xhat_zdot,
                                    gamma,   beta,  gammadot, gz, gzdot, parts, parts2};
  if (const char* why = MCT_START(tangent_backward_kernel, T, s.pool, cut, args, stream)) return why;
  return sum_images(s, parts, parts2, ggammadot, gbetadot, stream);
}

#define MCT_INSTANTIATE(T)                                                                                                 \
  template const char* block_forward(const BlockShape&, const T*, Param<T>, Param<T>, double, T*, T*, T*, Stream);         \
  template const char* block_backward(const BlockShape&, const T*, const T*, const T*, const T*, Param<T>, Param<T>, T*,   \
                                      T*, T*, T*, Stream);                                                                 \
  template const char* block_tangent(const BlockShape&, const T*, const T*, const T*, const T*, Param<T>, Param<T>,        \
                                     Param<T>, Param<T>, T*, T*, T*, Stream);                                              \
  template const char* block_tangent_backward(const BlockShape&, const T*, const T*, const T*, const T*, const T*,         \
                                              const T*, const T*, const T*, Param<T>, Param<T>, Param<T>, T*, T*, T*, T*,  \
                                              T*, Stream);
MCT_INSTANTIATE(float)
MCT_INSTANTIATE(double)

}  // namespace mct::cuda
