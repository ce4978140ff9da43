// Norm -> ReLU -> pool and its derivatives for one image, in one instruction set (see simd.h and units.h).
//
// What is done to one value stands in formulas.h. Every pass computes u by the same expression, so that all of them
// see the same mask.
// Sums run along a row first and rows are added after, which keeps float32 errors near those of a pairwise sum.

namespace mct::MCT_ISA {

// What a group of N vectors of channels needs to know. Without a norm xhat = z = u.
template <class T, int N, bool Partial>
struct Affine {
  V<T> mean[N], rstd[N], gamma[N], beta[N];

  MCT_INLINE Affine(const T* m, const T* r, const T* g, const T* b, int64_t n) {
    MCT_UNROLL for (int k = 0; k < N; ++k) {
      const int64_t c = k * Pack<T>::lanes;
      const bool norm = g != nullptr;
      mean[k] = norm ? load<Partial>(m + c, n) : V<T>{};
      rstd[k] = norm ? load<Partial>(r + c, n) : splat(T(1));
      gamma[k] = norm ? load<Partial>(g + c, n) : splat(T(1));
      beta[k] = norm ? load<Partial>(b + c, n) : V<T>{};
    }
  }
  MCT_INLINE V<T> xhat(V<T> z, int k) const { return normalised(z, mean[k], rstd[k]); }
  MCT_INLINE V<T> u(V<T> x, int k) const { return scaled(x, gamma[k], beta[k]); }
};

// Stores a part of a large output, past the caches where the plane says so.
template <bool Partial, class T>
MCT_INLINE void put(const Plane& s, T* p, V<T> v, int64_t n) {
  if (!Partial && s.streaming) {
    stream(p, v);
  } else {
    store<Partial>(p, v, n);
  }
}

template <class T, int N, bool Partial>
void statistics(const Plane& s, int64_t n, const T* z, T eps, T* mean, T* rstd) {
  constexpr int L = Pack<T>::lanes;
  const T count = static_cast<T>(s.H * s.W);
  V<T> m[N] = {}, q[N] = {};
  for (int64_t y = 0; y < s.H; ++y) {
    V<T> row[N] = {};
    const T* zr = z + y * s.W * s.C;
    for (int64_t x = 0; x < s.W; ++x, zr += s.C) {
      MCT_UNROLL for (int k = 0; k < N; ++k) row[k] += load<Partial>(zr + k * L, n);
    }
    MCT_UNROLL for (int k = 0; k < N; ++k) m[k] += row[k];
  }
  MCT_UNROLL for (int k = 0; k < N; ++k) m[k] /= count;
  for (int64_t y = 0; y < s.H; ++y) {
    V<T> row[N] = {};
    const T* zr = z + y * s.W * s.C;
    for (int64_t x = 0; x < s.W; ++x, zr += s.C) {
      MCT_UNROLL for (int k = 0; k < N; ++k) {
        const V<T> d = load<Partial>(zr + k * L, n) - m[k];
        row[k] += d * d;
      }
    }
    MCT_UNROLL for (int k = 0; k < N; ++k) q[k] += row[k];
  }
  MCT_UNROLL for (int k = 0; k < N; ++k) {
    T t[L];
    store(t, q[k] / count + eps);
    for (int i = 0; i < L; ++i) t[i] = T(1) / (sizeof(T) == 4 ? __builtin_sqrtf(t[i]) : __builtin_sqrt(t[i]));
    store<Partial>(mean + k * L, m[k], n);
    store<Partial>(rstd + k * L, load(t), n);
  }
}

template <class T, int N, bool Partial, int Window>
void forward_group(const Plane& s, int64_t n, const T* z, const T* gamma, const T* beta, T eps, T* p, T* mean, T* rstd) {
  constexpr int L = Pack<T>::lanes;
  if (gamma != nullptr) {
    statistics<T, N, Partial>(s, n, z, eps, mean, rstd);
  } else {
    MCT_UNROLL for (int k = 0; k < N; ++k) {
      store<Partial>(mean + k * L, V<T>{}, n);
      store<Partial>(rstd + k * L, splat(T(1)), n);
    }
  }
  const Affine<T, N, Partial> f(mean, rstd, gamma, beta, n);
  for (int64_t i = 0; i < s.H / Window; ++i) {
    for (int64_t j = 0; j < s.W / Window; ++j, p += s.pooled_C) {
      V<T> a[N] = {};
      MCT_UNROLL for (int dy = 0; dy < Window; ++dy) {
        MCT_UNROLL for (int dx = 0; dx < Window; ++dx) {
          const T* zp = z + ((i * Window + dy) * s.W + j * Window + dx) * s.C;
          MCT_UNROLL for (int k = 0; k < N; ++k) {
            const V<T> u = f.u(f.xhat(load<Partial>(zp + k * L, n), k), k);
            a[k] += masked(u, u);
          }
        }
      }
      MCT_UNROLL for (int k = 0; k < N; ++k) store<Partial>(p + k * L, a[k] * (T(1) / (Window * Window)), n);
    }
  }
}

template <class T, int N, bool Partial, int Window>
void backward_group(const Plane& s, int64_t n, const T* gp, const T* z, const T* mean, const T* rstd, const T* gamma,
                    const T* beta, T* gz, T* ggamma, T* gbeta) {
  constexpr int L = Pack<T>::lanes;
  constexpr T share = T(1) / (Window * Window);  // of a pooled cotangent, for each pixel of its window
  const Affine<T, N, Partial> f(mean, rstd, gamma, beta, n);
  const int64_t rows = s.H / Window, columns = s.W / Window;
  V<T> sum_g[N] = {}, sum_gx[N] = {};
  if (gamma != nullptr) {
    for (int64_t i = 0; i < rows; ++i) {
      V<T> row_g[N] = {}, row_gx[N] = {};
      const T* g = gp + i * columns * s.pooled_C;
      for (int64_t j = 0; j < columns; ++j, g += s.pooled_C) {
        MCT_UNROLL for (int k = 0; k < N; ++k) {
          const V<T> up = load<Partial>(g + k * L, n);
          MCT_UNROLL for (int dy = 0; dy < Window; ++dy) {
            MCT_UNROLL for (int dx = 0; dx < Window; ++dx) {
              const T* zp = z + ((i * Window + dy) * s.W + j * Window + dx) * s.C;
              const V<T> x = f.xhat(load<Partial>(zp + k * L, n), k);
              const V<T> gu = masked(f.u(x, k), up);
              row_g[k] += gu;
              row_gx[k] += gu * x;
            }
          }
        }
      }
      MCT_UNROLL for (int k = 0; k < N; ++k) {
        sum_g[k] += row_g[k];
        sum_gx[k] += row_gx[k];
      }
    }
  }
  const T count = static_cast<T>(s.H * s.W);
  V<T> a[N], b[N], c[N];
  MCT_UNROLL for (int k = 0; k < N; ++k) {
    cotangent_terms(f.gamma[k], f.rstd[k], share, count, sum_g[k], sum_gx[k], a[k], b[k], c[k]);
    store<Partial>(gbeta + k * L, sum_g[k] * share, n);
    store<Partial>(ggamma + k * L, sum_gx[k] * share, n);
  }
  for (int64_t y = 0; y < s.H; ++y) {
    const bool inside = y / Window < rows;
    const T* zp = z + y * s.W * s.C;
    T* out = gz + y * s.W * s.C;
    const T* g = gp + y / Window * columns * s.pooled_C;
    for (int64_t j = 0; j < s.W; j += Window, g += s.pooled_C) {
      const bool covered = inside && j / Window < columns;
      for (int dx = 0; dx < Window && j + dx < s.W; ++dx, zp += s.C, out += s.C) {
        MCT_UNROLL for (int k = 0; k < N; ++k) {
          const V<T> x = f.xhat(load<Partial>(zp + k * L, n), k);
          const V<T> gu = covered ? masked(f.u(x, k), load<Partial>(g + k * L, n)) : V<T>{};
          put<Partial>(s, out + k * L, cotangent(gu, x, a[k], b[k], c[k]), n);
        }
      }
    }
  }
  if (s.streaming) stream_end();
}

template <class T, int N, bool Partial, int Window>
void tangent_group(const Plane& s, int64_t n, const T* z, const T* zdot, const T* mean, const T* rstd, const T* gamma,
                   const T* beta, const T* gammadot, const T* betadot, T* pdot, T* mean_zdot, T* mean_xhat_zdot) {
  constexpr int L = Pack<T>::lanes;
  const Affine<T, N, Partial> f(mean, rstd, gamma, beta, n);
  V<T> m1[N] = {}, m2[N] = {}, gdot[N] = {}, bdot[N] = {};
  if (gamma != nullptr) {
    for (int64_t y = 0; y < s.H; ++y) {
      V<T> r1[N] = {}, r2[N] = {};
      const T* zp = z + y * s.W * s.C;
      const T* dp = zdot + y * s.W * s.C;
      for (int64_t x = 0; x < s.W; ++x, zp += s.C, dp += s.C) {
        MCT_UNROLL for (int k = 0; k < N; ++k) {
          const V<T> d = load<Partial>(dp + k * L, n);
          r1[k] += d;
          r2[k] += d * f.xhat(load<Partial>(zp + k * L, n), k);
        }
      }
      MCT_UNROLL for (int k = 0; k < N; ++k) {
        m1[k] += r1[k];
        m2[k] += r2[k];
      }
    }
    const T count = static_cast<T>(s.H * s.W);
    MCT_UNROLL for (int k = 0; k < N; ++k) {
      m1[k] /= count;
      m2[k] /= count;
      gdot[k] = load<Partial>(gammadot + k * L, n);
      bdot[k] = load<Partial>(betadot + k * L, n);
    }
  }
  V<T> by_zdot[N], by_xhat[N], rest[N];
  MCT_UNROLL for (int k = 0; k < N; ++k) {
    tangent_terms(f.gamma[k], gdot[k], bdot[k], f.rstd[k], m1[k], m2[k], by_zdot[k], by_xhat[k], rest[k]);
    store<Partial>(mean_zdot + k * L, m1[k], n);
    store<Partial>(mean_xhat_zdot + k * L, m2[k], n);
  }
  for (int64_t i = 0; i < s.H / Window; ++i) {
    for (int64_t j = 0; j < s.W / Window; ++j, pdot += s.pooled_C) {
      MCT_UNROLL for (int k = 0; k < N; ++k) {
        V<T> a = {};
        MCT_UNROLL for (int dy = 0; dy < Window; ++dy) {
          MCT_UNROLL for (int dx = 0; dx < Window; ++dx) {
            const int64_t at = ((i * Window + dy) * s.W + j * Window + dx) * s.C + k * L;
            const V<T> x = f.xhat(load<Partial>(z + at, n), k);
            const V<T> udot = scaled_dot(load<Partial>(zdot + at, n), x, by_zdot[k], by_xhat[k], rest[k]);
            a += masked(f.u(x, k), udot);
          }
        }
        store<Partial>(pdot + k * L, a * (T(1) / (Window * Window)), n);
      }
    }
  }
}

template <class T, int N, bool Partial, int Window>
void tangent_backward_group(const Plane& s, int64_t n, const T* gp, const T* gpdot, const T* z, const T* zdot,
                            const T* mean, const T* rstd, const T* mean_zdot, const T* mean_xhat_zdot, const T* gamma,
                            const T* beta, const T* gammadot, T* gz, T* gzdot, T* ggammadot, T* gbetadot) {
  constexpr int L = Pack<T>::lanes;
  constexpr T share = T(1) / (Window * Window);
  const Affine<T, N, Partial> f(mean, rstd, gamma, beta, n);
  const int64_t rows = s.H / Window, columns = s.W / Window;
  const bool norm = gamma != nullptr;
  V<T> rm1[N] = {}, rm2[N] = {}, gdot[N] = {};
  if (norm) {
    MCT_UNROLL for (int k = 0; k < N; ++k) {
      rm1[k] = f.rstd[k] * load<Partial>(mean_zdot + k * L, n);
      rm2[k] = f.rstd[k] * load<Partial>(mean_xhat_zdot + k * L, n);
      gdot[k] = load<Partial>(gammadot + k * L, n);
    }
  }
  // sums of gu, gu xhat, gudot, gu xhatdot + gudot xhat
  V<T> sum_g[N] = {}, sum_gx[N] = {}, sum_gd[N] = {}, sum_mixed[N] = {};
  if (norm) {
    for (int64_t i = 0; i < rows; ++i) {
      V<T> row_g[N] = {}, row_gx[N] = {}, row_gd[N] = {}, row_mixed[N] = {};
      const int64_t g_at = i * columns * s.pooled_C;
      for (int64_t j = 0; j < columns; ++j) {
        MCT_UNROLL for (int k = 0; k < N; ++k) {
          const V<T> up = load<Partial>(gp + g_at + j * s.pooled_C + k * L, n);
          const V<T> updot = load<Partial>(gpdot + g_at + j * s.pooled_C + k * L, n);
          MCT_UNROLL for (int dy = 0; dy < Window; ++dy) {
            MCT_UNROLL for (int dx = 0; dx < Window; ++dx) {
              const int64_t at = ((i * Window + dy) * s.W + j * Window + dx) * s.C + k * L;
              const V<T> x = f.xhat(load<Partial>(z + at, n), k);
              const V<T> xdot = normalised_dot(load<Partial>(zdot + at, n), x, f.rstd[k], rm1[k], rm2[k]);
              const V<T> u = f.u(x, k);
              const V<T> gu = masked(u, up), gud = masked(u, updot);
              row_g[k] += gu;
              row_gx[k] += gu * x;
              row_gd[k] += gud;
              row_mixed[k] += gud * x;
              row_mixed[k] += gu * xdot;
            }
          }
        }
      }
      MCT_UNROLL for (int k = 0; k < N; ++k) {
        sum_g[k] += row_g[k];
        sum_gx[k] += row_gx[k];
        sum_gd[k] += row_gd[k];
        sum_mixed[k] += row_mixed[k];
      }
    }
  }
  // Two outputs by turns fill their cache lines piece by piece; past the caches only a vector that is a whole line may go.
  Plane to = s;
  to.streaming = s.streaming && MCT_VL == 16;
  const T count = static_cast<T>(s.H * s.W);
  V<T> a[N], b[N], c[N], d[N], e[N], h[N];
  MCT_UNROLL for (int k = 0; k < N; ++k) {
    cotangent_terms(f.gamma[k], f.rstd[k], share, count, sum_g[k], sum_gx[k], a[k], b[k], c[k]);
    cotangent_dot_terms(gdot[k], f.rstd[k], share, count, a[k], sum_g[k], sum_gx[k], sum_gd[k], sum_mixed[k], d[k], e[k],
                        h[k]);
    store<Partial>(gbetadot + k * L, sum_gd[k] * share, n);
    store<Partial>(ggammadot + k * L, sum_mixed[k] * share, n);
  }
  for (int64_t y = 0; y < s.H; ++y) {
    const bool inside = y / Window < rows;
    int64_t at = y * s.W * s.C, g_at = y / Window * columns * s.pooled_C;
    for (int64_t j = 0; j < s.W; j += Window, g_at += s.pooled_C) {
      const bool covered = inside && j / Window < columns;
      for (int dx = 0; dx < Window && j + dx < s.W; ++dx, at += s.C) {
        MCT_UNROLL for (int k = 0; k < N; ++k) {
          const V<T> x = f.xhat(load<Partial>(z + at + k * L, n), k);
          const V<T> xdot = normalised_dot(load<Partial>(zdot + at + k * L, n), x, f.rstd[k], rm1[k], rm2[k]);
          const V<T> u = f.u(x, k);
          const V<T> gu = covered ? masked(u, load<Partial>(gp + g_at + k * L, n)) : V<T>{};
          const V<T> gud = covered ? masked(u, load<Partial>(gpdot + g_at + k * L, n)) : V<T>{};
          const V<T> v = cotangent(gu, x, a[k], b[k], c[k]);
          const V<T> w = cotangent_dot(v, gu, gud, x, xdot, a[k], c[k], d[k], e[k], h[k], rm2[k]);
          put<Partial>(to, gz + at + k * L, v, n);
          put<Partial>(to, gzdot + at + k * L, w, n);
        }
      }
    }
  }
  if (to.streaming) stream_end();
}

// Vectors of channels that the pass with the most sums takes at once: 128 bytes of each pixel, or memory is read in pieces too
// small for it.
constexpr int kWide = MCT_VL == 16 ? 2 : 4;

// Runs `group` over the channels: N vectors at a time, then two, then one, then the rest of a vector. Sums of one vector
// alone wait for each other; two is also what the fused first block has of a plane. Double, the dtype of checks, does without
// the first two where arithmetic, and not memory, takes the time: a channel's bits are the same, and there is less to compile.
template <class T>
constexpr int wide(int vectors) {
  return sizeof(T) == 4 ? vectors : 1;
}

#define MCT_GROUPS(group, N, Partial, n, ...) \
  s.pool ? group<T, N, Partial, 2>(s, n, __VA_ARGS__) : group<T, N, Partial, 1>(s, n, __VA_ARGS__);
#define MCT_OVER_CHANNELS(group, width, ...)                                                        \
  constexpr int L = Pack<T>::lanes;                                                                 \
  int64_t c = 0;                                                                                    \
  if constexpr (width > 2) {                                                                        \
    for (; c + width * L <= s.channels; c += width * L) {                                           \
      MCT_GROUPS(group, width, false, 0, __VA_ARGS__)                                               \
    }                                                                                               \
  }                                                                                                 \
  if constexpr (sizeof(T) == 4) {                                                                   \
    for (; c + 2 * L <= s.channels; c += 2 * L) {                                                   \
      MCT_GROUPS(group, 2, false, 0, __VA_ARGS__)                                                   \
    }                                                                                               \
  }                                                                                                 \
  for (; c + L <= s.channels; c += L) {                                                             \
    MCT_GROUPS(group, 1, false, 0, __VA_ARGS__)                                                     \
  }                                                                                                 \
  if (c < s.channels) {                                                                             \
    const int64_t n = s.channels - c;                                                               \
    MCT_GROUPS(group, 1, true, n, __VA_ARGS__)                                                      \
  }

template <class T>
MCT_INLINE const T* shifted(const T* p, int64_t c) {
  return p == nullptr ? nullptr : p + c;
}

template <class T>
void block_forward(const Plane& s, const T* z, const T* gamma, const T* beta, T eps, T* p, T* mean, T* rstd) {
  MCT_OVER_CHANNELS(forward_group, 4, z + c, shifted(gamma, c), shifted(beta, c), eps, p + c, mean + c, rstd + c)
}

template <class T>
void block_backward(const Plane& s, const T* gp, const T* z, const T* mean, const T* rstd, const T* gamma,
                    const T* beta, T* gz, T* ggamma, T* gbeta) {
  MCT_OVER_CHANNELS(backward_group, wide<T>(4), gp + c, z + c, mean + c, rstd + c, shifted(gamma, c), shifted(beta, c), gz + c,
                    ggamma + c, gbeta + c)
}

template <class T>
void block_tangent(const Plane& s, const T* z, const T* zdot, const T* mean, const T* rstd, const T* gamma,
                   const T* beta, const T* gammadot, const T* betadot, T* pdot, T* mean_zdot, T* mean_xhat_zdot) {
  MCT_OVER_CHANNELS(tangent_group, wide<T>(4), z + c, zdot + c, mean + c, rstd + c, shifted(gamma, c), shifted(beta, c),
                    shifted(gammadot, c), shifted(betadot, c), pdot + c, mean_zdot + c, mean_xhat_zdot + c)
}

template <class T>
void block_tangent_backward(const Plane& s, const T* gp, const T* gpdot, const T* z, const T* zdot, const T* mean,
                            const T* rstd, const T* mean_zdot, const T* mean_xhat_zdot, const T* gamma, const T* beta,
                            const T* gammadot, T* gz, T* gzdot, T* ggammadot, T* gbetadot) {
  MCT_OVER_CHANNELS(tangent_backward_group, wide<T>(kWide), gp + c, gpdot + c, z + c, zdot + c, mean + c, rstd + c, mean_zdot + c,
                    mean_xhat_zdot + c, shifted(gamma, c), shifted(beta, c), shifted(gammadot, c),
                    gz + c, gzdot + c, ggammadot + c, gbetadot + c)
}

#undef MCT_OVER_CHANNELS
#undef MCT_GROUPS

}  // namespace mct::MCT_ISA
