// Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308) for 3x3 convolutions, F(4x4, 3x3), and for their
// weight gradient, F(3x3, 4x4). Tiles of 4x4 outputs read 6x6 inputs and cost 36 products a channel pair, not 144.
// Interpolation points 0, +-1/sqrt(2), +-sqrt(2), infinity: half the rounding error of the usual 0, +-1, +-2.
// Tiles may hang over the edge of the image: what is outside counts as zero and is not stored.
// No include guard: MCT_ISA names the copy.

namespace mct::MCT_ISA {

constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;  // the points; their squares are 1/2 and 2

// y = B^T x: six inputs of a line to six frequencies.
MCT_INLINE void input_line(const vf* x, vf* y) {
  const vf u = x[4] - 2.0f * x[2], v = x[3] - 2.0f * x[1];
  const vf s = x[4] - 0.5f * x[2], t = x[3] - 0.5f * x[1];
  y[0] = (x[0] + x[4]) - 2.5f * x[2];
  y[1] = u + kA * v;
  y[2] = u - kA * v;
  y[3] = s + kB * t;
  y[4] = s - kB * t;
  y[5] = (x[1] + x[5]) - 2.5f * x[3];
}

// y = A^T m: six frequencies to four outputs.
MCT_INLINE void output_line(const vf* m, vf* y) {
  const vf s = m[1] + m[2], d = m[1] - m[2], t = m[3] + m[4], e = m[3] - m[4];
  y[0] = m[0] + s + t;
  y[1] = kA * d + kB * e;
  y[2] = 0.5f * s + 2.0f * t;
  y[3] = m[5] + (0.5f * kA) * d + (2.0f * kB) * e;
}

// y = A g: four outputs' gradients to six frequencies.
MCT_INLINE void gradient_line(const vf* g, vf* y) {
  const vf s = g[0] + 0.5f * g[2], d = kA * (g[1] + 0.5f * g[3]);
  const vf t = g[0] + 2.0f * g[2], e = kB * (g[1] + 2.0f * g[3]);
  y[0] = g[0];
  y[1] = s + d;
  y[2] = s - d;
  y[3] = t + e;
  y[4] = t - e;
  y[5] = g[3];
}

// y = G w: three taps to six frequencies.
MCT_INLINE void weight_line(const vf* w, vf* y) {
  constexpr float p = -2.0f / 3.0f, q = 1.0f / 6.0f;
  const vf s = p * w[0] + (0.5f * p) * w[2], d = (p * kA) * w[1];
  const vf t = q * w[0] + (2.0f * q) * w[2], e = (q * kB) * w[1];
  y[0] = w[0];
  y[1] = s + d;
  y[2] = s - d;
  y[3] = t + e;
  y[4] = t - e;
  y[5] = w[2];
}

// y = G^T m: six frequencies to three taps.
MCT_INLINE void weight_gradient_line(const vf* m, vf* y) {
  constexpr float p = -2.0f / 3.0f, q = 1.0f / 6.0f;
  const vf s = m[1] + m[2], d = m[1] - m[2], t = m[3] + m[4], e = m[3] - m[4];
  y[0] = m[0] + p * s + q * t;
  y[1] = (p * kA) * d + (q * kB) * e;
  y[2] = m[5] + (0.5f * p) * s + (2.0f * q) * t;
}

constexpr int64_t kFewTiles = 64;  // a student's tiles for which one panel of weights at a time is transformed and used

// Where the 4x4 tiles of the images lie. Tile i of a student is tile i % a_image of image i / a_image.
struct Tiles {
  int64_t H, W, across, a_image;
  MCT_INLINE Tiles(int64_t height, int64_t width)
      : H(height), W(width), across(ceil_div(width, 4)), a_image(ceil_div(height, 4) * ceil_div(width, 4)) {}
};

// Transforms one tile's 6x6 inputs, `channels` of them, to rows out + f * step (rounded up to whole vectors): all 36, or
// those of the 6-frequency lines FIRST .. LAST - 1, counted from 0. x: the student's images (B, H, W, channels).
// zeros: `channels` zeros.
template <int FIRST = 0, int LAST = 6>
static void transform_input(const Tiles& tiles, int64_t tile, const float* x, int64_t channels, const float* zeros,
                            float* out, int64_t step) {
  const int64_t image = tile / tiles.a_image, place = tile % tiles.a_image;
  const int64_t y0 = place / tiles.across * 4 - 1, x0 = place % tiles.across * 4 - 1;
  const float* const base = x + image * tiles.H * tiles.W * channels;
  const float* at[36];
  for (int i = 0; i < 6; ++i) {
    const int64_t yy = y0 + i;
    const bool inside = yy >= 0 && yy < tiles.H;
    for (int j = 0; j < 6; ++j) {
      const int64_t xx = x0 + j;
      at[i * 6 + j] = inside && xx >= 0 && xx < tiles.W ? base + (yy * tiles.W + xx) * channels : zeros;
    }
  }
  for (int64_t c = 0; c < channels; c += VL) {
    const int64_t left = channels - c;
    vf half[6][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      vf in[6], down[6];
      if (left >= VL) {
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) in[i] = load(at[i * 6 + j] + c);
      } else {
        for (int i = 0; i < 6; ++i) in[i] = load_first(at[i * 6 + j] + c, left);
      }
      input_line(in, down);
#pragma GCC unroll 6
      for (int i = FIRST; i < LAST; ++i) half[i][j] = down[i];
    }
#pragma GCC unroll 6
    for (int i = FIRST; i < LAST; ++i) {
      vf across[6];
      input_line(half[i], across);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) store(out + ((i - FIRST) * 6 + j) * step + c, across[j]);
    }
  }
}

// Transforms one tile's 36 frequencies at in + f * step back to 4x4 outputs, adds the bias (padded to whole vectors, or
// null), and stores what lies inside the image. z: the student's images (B, H, W, channels), of which `width_c` channels
// from z on are written.
static void transform_output(const Tiles& tiles, int64_t tile, const float* in, int64_t step, const float* bias,
                             float* z, int64_t channels, int64_t width_c, bool streaming) {
  const int64_t image = tile / tiles.a_image, place = tile % tiles.a_image;
  const int64_t y0 = place / tiles.across * 4, x0 = place % tiles.across * 4;
  const int64_t height = least(4, tiles.H - y0), width = least(4, tiles.W - x0), line = tiles.W * channels;
  float* const out = z + ((image * tiles.H + y0) * tiles.W + x0) * channels;
  for (int64_t c = 0; c < width_c; c += VL) {
    const int64_t left = width_c - c;
    vf half[4][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      vf m[6], down[4];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) m[i] = load(in + (i * 6 + j) * step + c);
      output_line(m, down);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) half[i][j] = down[i];
    }
    const vf add = bias == nullptr ? vf{} : load(bias + c);
    const bool whole = height == 4 && width == 4 && left >= VL;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      vf across[4];
      output_line(half[i], across);
      float* const to = out + i * line + c;
      if (whole && streaming) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) stream(to + j * channels, across[j] + add);
      } else if (whole) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) store(to + j * channels, across[j] + add);
      } else if (i < height) {
        for (int j = 0; j < width; ++j) store_first(to + j * channels, across[j] + add, left);
      }
    }
  }
}

// Transforms one tile's 4x4 gradients to 36 rows (or those of lines FIRST .. LAST - 1), panel by panel: channel c of frequency f goes to
// out + f * step + c / CB * panel_step + c % CB. Adds the tile's sum to `sum` (padded) unless it is null.
template <int FIRST = 0, int LAST = 6>
static void transform_gradient(const Tiles& tiles, int64_t tile, const float* g, int64_t channels, float* out,
                               int64_t step, int64_t panel_step, float* sum) {
  const int64_t image = tile / tiles.a_image, place = tile % tiles.a_image;
  const int64_t y0 = place / tiles.across * 4, x0 = place % tiles.across * 4;
  const int64_t height = least(4, tiles.H - y0), width = least(4, tiles.W - x0), line = tiles.W * channels;
  const float* const from = g + ((image * tiles.H + y0) * tiles.W + x0) * channels;
  for (int64_t c = 0; c < round_up(channels, CB); c += VL) {
    const int64_t left = channels - c;
    float* const to = out + c / CB * panel_step + c % CB;
    vf half[6][4];
    vf total = vf{};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      vf in[4], down[6];
      if (height == 4 && width == 4 && left >= VL) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) in[i] = load(from + i * line + j * channels + c);
      } else {
        for (int i = 0; i < 4; ++i) {
          in[i] = i < height && j < width && left > 0 ? load_first(from + i * line + j * channels + c, left) : vf{};
        }
      }
      total += (in[0] + in[1]) + (in[2] + in[3]);
      gradient_line(in, down);
#pragma GCC unroll 6
      for (int i = FIRST; i < LAST; ++i) half[i][j] = down[i];
    }
#pragma GCC unroll 6
    for (int i = FIRST; i < LAST; ++i) {
      vf across[6];
      gradient_line(half[i], across);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) store(to + ((i - FIRST) * 6 + j) * step, across[j]);
    }
    if (sum != nullptr) store(sum + c, load(sum + c) + total);
  }
}

// Transforms 3x3 taps, VL filters at a time: tap t of the filters is taps[t], frequency f goes to out + f * step.
MCT_INLINE void transform_taps(const vf* taps, bool flipped, float* out, int64_t step) {
  vf half[6][3];
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    vf down[6];
    const vf in[3] = {taps[flipped ? 8 - x : x], taps[flipped ? 5 - x : 3 + x], taps[flipped ? 2 - x : 6 + x]};
    weight_line(in, down);
#pragma GCC unroll 6
    for (int y = 0; y < 6; ++y) half[y][x] = down[y];
  }
#pragma GCC unroll 6
  for (int y = 0; y < 6; ++y) {
    vf across[6];
    weight_line(half[y], across);
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) store(out + (y * 6 + x) * step, across[x]);
  }
}

// Transforms the weights of one panel (columns n0 .. n0 + CB) for the input channels [k0, k1):
// out + f * step + k * CB, CB floats each.
static void transform_weights(const ConvProblem& p, const float* w, int64_t n0, int64_t k0, int64_t k1, float* out,
                              int64_t step) {
  vf taps[VL * 9];  // [k][tap], over n
  float* const lanes = reinterpret_cast<float*>(taps);
  for (int v = 0; v < CB; v += VL) {
    const int64_t columns = least(VL, p.N - n0 - v);
    for (int64_t k = k0; k < k1; k += VL) {
      const int64_t run = least(VL, k1 - k);
      const float* const from = w + (n0 + v) * p.w_n + k * p.w_k;
      if (run == VL && columns == VL) {
        // The dimension whose nine taps are neighbours gives rows of 9 * VL floats.
        const bool inner_k = p.w_k < p.w_n;
        const int64_t stride = inner_k ? p.w_n : p.w_k;
        for (int t = 0; t < 9; ++t) {
          vf r[VL];
#pragma GCC unroll 16
          for (int i = 0; i < VL; ++i) r[i] = load(from + i * stride + t * VL);
          transpose(r);
#pragma GCC unroll 16
          for (int i = 0; i < VL; ++i) taps[t * VL + i] = r[i];
        }
        if (!inner_k) {  // taps is now [n][tap] over k
          for (int t = 0; t < 9; ++t) {
            vf r[VL];
#pragma GCC unroll 16
            for (int i = 0; i < VL; ++i) r[i] = taps[i * 9 + t];
            transpose(r);
#pragma GCC unroll 16
            for (int i = 0; i < VL; ++i) taps[i * 9 + t] = r[i];
          }
        }
      } else {
        clear(lanes, VL * 9 * VL);
        for (int64_t i = 0; i < run; ++i) {
          for (int64_t n = 0; n < columns; ++n) {
            for (int t = 0; t < 9; ++t) lanes[(i * 9 + t) * VL + n] = from[n * p.w_n + i * p.w_k + t];
          }
        }
      }
      for (int64_t i = 0; i < run; ++i) transform_taps(taps + i * 9, p.flipped, out + (k + i) * CB + v, step);
    }
  }
}

// Turns the frequencies m + f * step of `run` <= VL input channels (CB floats apart) and `columns` <= VL output channels
// back into taps: gw[(n * Ci + i) * 9 + t].
static void store_weight_gradient(const float* m, int64_t step, int64_t run, int64_t columns, float* gw, int64_t Ci) {
  vf taps[VL * 9];
  for (int64_t i = 0; i < run; ++i) {
    vf half[3][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) {
      vf in[6], down[3];
#pragma GCC unroll 6
      for (int y = 0; y < 6; ++y) in[y] = load(m + (y * 6 + x) * step + i * CB);
      weight_gradient_line(in, down);
#pragma GCC unroll 3
      for (int y = 0; y < 3; ++y) half[y][x] = down[y];
    }
#pragma GCC unroll 3
    for (int y = 0; y < 3; ++y) {
      vf across[3];
      weight_gradient_line(half[y], across);
#pragma GCC unroll 3
      for (int x = 0; x < 3; ++x) taps[i * 9 + y * 3 + x] = across[x];
    }
  }
  if (run == VL && columns == VL) {
    for (int t = 0; t < 9; ++t) {
      vf r[VL];
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) r[i] = taps[t * VL + i];
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < VL; ++i) store(gw + i * Ci * 9 + t * VL, r[i]);
    }
    return;
  }
  const float* const lanes = reinterpret_cast<const float*>(taps);
  for (int64_t n = 0; n < columns; ++n) {
    for (int64_t i = 0; i < run * 9; ++i) gw[n * Ci * 9 + i] = lanes[i * VL + n];
  }
}

// For few tiles a student the transformed weights would cost more to write and read back than the products cost. So one
// panel of output channels at a time is transformed into the level-2 cache and used up by all tiles.
static void convolve_winograd_few_tiles(const ConvProblem& p) {
  const Tiles tiles(p.H, p.W);
  const int64_t count = p.B * tiles.a_image, panels = ceil_div(p.N, CB), Np = panels * CB, Kp = round_up(p.K, VL);
  const int64_t row = p.pairs * Kp + 16, in_step = count * row + 16;
  const int64_t w_step = p.K * CB + 16, out_step = count * CB + 16;
  const int64_t threads = max_threads();
  // With a student or more for each thread, a thread does a whole student; else panels are shared out.
  const bool whole = p.S >= threads;
  const int64_t inputs = 36 * in_step, space = p.pairs * 36 * w_step + 36 * out_step + kRoom;
  const int64_t input_blocks = whole ? threads : p.S;
  const Scratch scratch(static_cast<size_t>(input_blocks * inputs + threads * space + p.S * Np + Kp) * sizeof(float));
  float* const in = scratch.floats();                  // (S or threads, 36, tiles, pairs * Kp)
  float* const work = in + input_blocks * inputs;      // (threads): weights (pairs, 36, K, CB), products (36, tiles, CB)
  float* const bias = work + threads * space;          // (S, Np)
  float* const zeros = bias + p.S * Np;
  clear(zeros, Kp);
  for (int64_t s = 0; s < p.S; ++s) pad_bias(p, s, bias + s * Np, Np);
  const auto transform = [&](int64_t s, int64_t tile, float* to) {
    for (int h = 0; h < p.pairs; ++h) {
      transform_input(tiles, tile, p.x[h] + s * p.B * p.H * p.W * p.K, p.K, zeros, to + tile * row + h * Kp, in_step);
    }
  };
  const auto panel = [&](int64_t s, int64_t q, const float* from, int thread) {
    float* const w = work + thread * space;
    float* const products = w + p.pairs * 36 * w_step;
    for (int h = 0; h < p.pairs; ++h) {
      transform_weights(p, p.w[h] + s * p.w_stride_s[h], q * CB, 0, p.K, w + h * 36 * w_step, w_step);
    }
    for (int64_t f = 0; f < 36; ++f) {
      Stretch stretch[2];
      for (int h = 0; h < p.pairs; ++h) {
        stretch[h] = panel_stretch(from + f * in_step + h * Kp, w + (h * 36 + f) * w_step, p.K);
      }
      product(stretch, p.pairs, count, row, p.K, products + f * out_step, CB, nullptr, CB);
    }
    for (int64_t i = 0; i < count; ++i) {
      transform_output(tiles, i, products + i * CB, out_step, p.bias == nullptr ? nullptr : bias + s * Np + q * CB,
                       p.out + s * p.B * p.H * p.W * p.N + q * CB, p.N, least(CB, p.N - q * CB), false);
    }
  };
  const double panel_cost = product_cost(36 * count * p.pairs * p.K * CB);
  if (whole) {
    parallel_for(p.S, panels * panel_cost, [&](int64_t s, int thread) {
      float* const to = in + thread * inputs;
      for (int64_t i = 0; i < count; ++i) transform(s, i, to);
      for (int64_t q = 0; q < panels; ++q) panel(s, q, to, thread);
    });
    return;
  }
  constexpr int64_t kPart = 4;
  const int64_t parts = ceil_div(count, kPart);
  parallel_for(p.S * parts, pass_cost(36 * kPart * p.pairs * p.K), [&](int64_t job, int) {
    const int64_t s = job / parts, first = job % parts * kPart;
    for (int64_t i = first; i < least(count, first + kPart); ++i) transform(s, i, in + s * inputs);
  });
  parallel_for(p.S * panels, panel_cost, [&](int64_t job, int thread) {
    panel(job / panels, job % panels, in + job / panels * inputs, thread);
  });
}

// The transformed inputs of a block of tiles stay in the level-2 cache and are turned into the products in place: the
// products of frequency f overwrite the inputs of frequency f - 1.
static void convolve_winograd(const ConvProblem& p) {
  const Tiles tiles(p.H, p.W);
  const int64_t count = p.B * tiles.a_image;
  if (count <= kFewTiles) return convolve_winograd_few_tiles(p);
  const int64_t panels = ceil_div(p.N, CB), Np = panels * CB, Kp = round_up(p.K, VL);
  // A line more than a power of two: 36 frequencies at one place of the caches would drive each other out.
  const int64_t frequency = panels * p.K * CB + 16, student = p.pairs * 36 * frequency;
  const int64_t threads = max_threads();
  // With two students or more for each thread, a thread does whole students and keeps one student's weights at a time.
  const bool whole = p.S >= 2 * threads;

  const bool streaming = worth_streaming(p.out, p.S * p.B * p.H * p.W, p.N) && VL * sizeof(float) == 64;
  const int64_t row = most(p.pairs * Kp, Np) + 16;
  // Block size: about 1 MB of frequencies, no more than the threads can share evenly. Bits do not depend on it.
  const int64_t fits = most(RMAX, (int64_t{1} << 18) / (37 * row) / RMAX * RMAX);
  int64_t blocks = ceil_div(count, least(fits, 4 * RMAX));
  while (!whole && p.S * blocks % threads != 0 && p.S * blocks < 8 * threads && count / (blocks + 1) >= 4) ++blocks;
  const int64_t step = ceil_div(count, blocks) * row + 16;
  const int64_t space = 37 * step + Kp + kRoom, weights = whole ? threads : p.S;
  const Scratch scratch(static_cast<size_t>(weights * student + p.S * Np + threads * space) * sizeof(float));
  float* const packed = scratch.floats();                      // (S or threads, pairs, 36, panels, K, CB)
  float* const bias = packed + weights * student;              // (S, Np)
  float* const work = bias + p.S * Np;                         // (threads): slots, zeros
  for (int64_t s = 0; s < p.S; ++s) pad_bias(p, s, bias + s * Np, Np);
  for (int64_t t = 0; t < threads; ++t) clear(work + t * space + 37 * step, Kp);

  const auto pack = [&](int64_t s, int h, int64_t q, int64_t k0, int64_t k1, float* to) {
    transform_weights(p, p.w[h] + s * p.w_stride_s[h], q * CB, k0, k1, to + h * 36 * frequency + q * p.K * CB, frequency);
  };
  const auto block = [&](int64_t s, int64_t number, const float* from, int thread) {
    const int64_t first = part_begin(count, blocks, number), rows = part_begin(count, blocks, number + 1) - first;
    float* const slots = work + thread * space;  // 37 slots: inputs of f in slot f + 1
    const float* const zeros = slots + 37 * step;
    for (int64_t i = 0; i < rows; ++i) {
      for (int h = 0; h < p.pairs; ++h) {
        transform_input(tiles, first + i, p.x[h] + s * p.B * p.H * p.W * p.K, p.K, zeros,
                        slots + step + i * row + h * Kp, step);
      }
    }
    for (int64_t f = 0; f < 36; ++f) {
      for (int64_t q = 0; q < panels; ++q) {
        Stretch stretch[2];
        for (int h = 0; h < p.pairs; ++h) {
          stretch[h] = panel_stretch(slots + (f + 1) * step + h * Kp, from + (h * 36 + f) * frequency + q * p.K * CB, p.K);
        }
        product(stretch, p.pairs, rows, row, p.K, slots + f * step + q * CB, row, nullptr, CB);
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      transform_output(tiles, first + i, slots + i * row, step, p.bias == nullptr ? nullptr : bias + s * Np,
                       p.out + s * p.B * p.H * p.W * p.N, p.N, p.N, streaming);
    }
    if (streaming) stream_end();
  };

  const double student_cost = product_cost(36 * count * p.pairs * p.K * Np);
  if (whole) {
    parallel_for(p.S, student_cost, [&](int64_t s, int thread) {
      float* const mine = packed + thread * student;
      for (int h = 0; h < p.pairs; ++h) {
        for (int64_t q = 0; q < panels; ++q) pack(s, h, q, 0, p.K, mine);
      }
      for (int64_t i = 0; i < blocks; ++i) block(s, i, mine, thread);
    });
    return;
  }
  constexpr int64_t kChunk = 32;
  const int64_t chunks = ceil_div(p.K, kChunk);
  parallel_for(p.S * p.pairs * panels * chunks, pass_cost(36 * kChunk * CB), [&](int64_t job, int) {
    const int64_t k0 = job % chunks * kChunk, q = job / chunks % panels, h = job / (chunks * panels) % p.pairs,
                  s = job / (chunks * panels * p.pairs);
    pack(s, static_cast<int>(h), q, k0, least(p.K, k0 + kChunk), packed + s * student);
  });
  parallel_for(p.S * blocks, student_cost / static_cast<double>(blocks), [&](int64_t job, int thread) {
    block(job / blocks, job % blocks, packed + job / blocks * student, thread);
  });
}

// The weight gradient: for each frequency, the sum over tiles of inputs times gradients is a product.
//
// Tiles come in stretches of at most kStretch. A stretch's sum is formed in registers and added to the total, stretch by
// stretch in order: one long running sum would lose accuracy, and this way the bits depend on no division of labour.
// Labour is divided over frequencies, so that no total is ever split between threads.
constexpr int64_t kStretch = 48;
constexpr int64_t kBiasPart = 8;  // tiles whose gradients are summed in one go for the bias

struct WeightWinograd {
  const WeightProblem& p;
  Tiles tiles;
  int64_t each, count;                  // tiles of a student: of one operand pair, of all pairs one after another
  int64_t stretches, most_tiles;
  int64_t panels, Np, Kp, row;
  int64_t in_step, g_panel, g_step;     // floats between frequencies, panels
  int64_t sum_panel, sum_step, sums;    // totals of a student: (36, panels, Ci, CB)
  int64_t parts;                        // of kBiasPart tiles in a stretch
  const float* zeros;

  explicit WeightWinograd(const WeightProblem& problem) : p(problem), tiles(problem.H, problem.W), zeros(nullptr) {
    each = p.B * tiles.a_image;
    count = p.pairs * each;
    stretches = ceil_div(count, kStretch);
    most_tiles = ceil_div(count, stretches);
    panels = ceil_div(p.Co, CB);
    Np = panels * CB;
    Kp = round_up(p.Ci, VL);
    row = Kp + 16;
    in_step = most_tiles * row + 16;
    g_panel = most_tiles * CB + 16;
    g_step = panels * g_panel;
    sum_panel = p.Ci * CB;
    sum_step = panels * sum_panel + 16;
    sums = 36 * sum_step;
    parts = ceil_div(most_tiles, kBiasPart);
  }

  int64_t begin(int64_t stretch) const { return part_begin(count, stretches, stretch); }

  // Transforms part `part` of a stretch; `in` and `g` hold the stretch, `bias` (null or Np) gets the sum of g[0].
  template <int FIRST, int LAST>
  void transform(int64_t s, int64_t stretch, int64_t part, float* in, float* g, float* bias) const {
    const int64_t first = begin(stretch), images = s * p.B * p.H * p.W;
    const int64_t end = least(begin(stretch + 1), first + (part + 1) * kBiasPart);
    if (bias != nullptr) clear(bias, Np);
    for (int64_t t = first + part * kBiasPart; t < end; ++t) {
      const int h = t >= each ? 1 : 0;
      const int64_t tile = t - h * each, at = t - first;
      transform_input<FIRST, LAST>(tiles, tile, p.x[h] + images * p.Ci, p.Ci, zeros, in + at * row, in_step);
      transform_gradient<FIRST, LAST>(tiles, tile, p.g[h] + images * p.Co, p.Co, g + at * CB, g_step, g_panel,
                                      h == 0 ? bias : nullptr);
    }
  }

  // total (+)= the products of one stretch for one frequency and panel.
  void add(int64_t stretch, const float* in, const float* g, float* total) const {
    const int64_t here = begin(stretch + 1) - begin(stretch), blocks = ceil_div(p.Ci, RMAX);
    for (int64_t n = 0; n < blocks; ++n) {
      const int64_t r0 = part_begin(p.Ci, blocks, n), r1 = part_begin(p.Ci, blocks, n + 1);
      kProductOuter[r1 - r0](in + r0, row, 0, g, CB, 0, 1, here, total + r0 * CB, stretch > 0, total + r1 * CB);
    }
  }

  // Turns totals of VL input channels from k on back into taps.
  void finish(int64_t s, int64_t q, int64_t k, const float* total, int64_t step) const {
    for (int v = 0; v < CB && q * CB + v < p.Co; v += VL) {
      store_weight_gradient(total + k * CB + v, step, least(VL, p.Ci - k), least(VL, p.Co - q * CB - v),
                            p.gw + s * p.gw_stride_s + ((q * CB + v) * p.Ci + k) * 9, p.Ci);
    }
  }

  // All stretches of a student for the frequencies of lines FIRST .. LAST - 1, by one thread: everything it touches
  // stays in its level-2 cache. `space` holds one stretch; `bias` as above, (stretches, parts, Np).
  template <int FIRST, int LAST>
  void lines(int64_t s, float* space, float* totals, float* bias) const {
    constexpr int64_t kCount = 6 * (LAST - FIRST);
    float* const g = space + kCount * in_step;
    for (int64_t stretch = 0; stretch < stretches; ++stretch) {
      for (int64_t part = 0; part < parts; ++part) {
        transform<FIRST, LAST>(s, stretch, part, space, g,
                               bias == nullptr ? nullptr : bias + (stretch * parts + part) * Np);
      }
      for (int64_t f = 0; f < kCount; ++f) {
        for (int64_t q = 0; q < panels; ++q) {
          add(stretch, space + f * in_step, g + f * g_step + q * g_panel,
              totals + (6 * FIRST + f) * sum_step + q * sum_panel);
        }
      }
    }
  }
};

static void weight_gradient_winograd(const WeightProblem& p) {
  WeightWinograd c(p);
  const int64_t threads = max_threads(), stretch_space = 36 * (c.in_step + c.g_step);
  // Three divisions of labour. One stretch: panels, whose products are turned into taps while they are in the cache.
  // As many half students as threads: a thread does half the frequencies of a student by itself.
  // Else all threads transform a stretch together and then share out frequencies and panels.
  const bool one_stretch = c.stretches == 1, halves = !one_stretch && 2 * p.S >= threads;
  const int64_t together = least(p.S, halves ? 2 * threads : most(1, (int64_t{4} << 20) / stretch_space));
  const int64_t panel_step = c.sum_panel + 16;
  const int64_t spaces = halves ? threads : together;
  const int64_t all_sums = one_stretch ? threads * 36 * panel_step : together * c.sums;
  const int64_t bias_floats = c.stretches * c.parts * c.Np;
  const Scratch scratch(static_cast<size_t>(spaces * stretch_space + all_sums + together * bias_floats + c.Kp) *
                        sizeof(float));
  float* const space = scratch.floats();                  // (spaces): inputs (36, tiles, row), gradients (36, panels, tiles, CB)
  float* const sum = space + spaces * stretch_space;      // (together, 36, panels, Ci, CB) or (threads, 36, Ci, CB)
  float* const biases = sum + all_sums;                   // (together, stretches, parts, Np)
  float* const zeros = biases + together * bias_floats;
  clear(zeros, c.Kp);
  c.zeros = zeros;
  const int64_t g_at = 36 * c.in_step;

  for (int64_t s0 = 0; s0 < p.S; s0 += together) {
    const int64_t here = least(together, p.S - s0);
    if (halves) {
      parallel_for(here * 2, product_cost(18 * c.count * p.Ci * c.Np), [&](int64_t job, int thread) {
        const int64_t i = job / 2;
        float* const mine = space + thread * stretch_space;
        if (job % 2 == 0) {
          c.lines<0, 3>(s0 + i, mine, sum + i * c.sums, p.gb == nullptr ? nullptr : biases + i * bias_floats);
        } else {
          c.lines<3, 6>(s0 + i, mine, sum + i * c.sums, nullptr);
        }
      });
    } else {
      for (int64_t stretch = 0; stretch < c.stretches; ++stretch) {
        parallel_for(here * c.parts, pass_cost(36 * kBiasPart * (p.Ci + p.Co)), [&](int64_t job, int) {
          const int64_t i = job / c.parts, part = job % c.parts;
          float* const its = space + i * stretch_space;
          c.transform<0, 6>(s0 + i, stretch, part, its, its + g_at,
                            p.gb == nullptr ? nullptr : biases + i * bias_floats + (stretch * c.parts + part) * c.Np);
        });
        if (one_stretch) break;
        parallel_for(here * 36 * c.panels, product_cost(c.most_tiles * p.Ci * CB), [&](int64_t job, int) {
          const int64_t i = job / (36 * c.panels), f = job / c.panels % 36, q = job % c.panels;
          const float* const its = space + i * stretch_space;
          c.add(stretch, its + f * c.in_step, its + g_at + f * c.g_step + q * c.g_panel,
                sum + i * c.sums + f * c.sum_step + q * c.sum_panel);
        });
      }
    }
    if (one_stretch) {
      parallel_for(here * c.panels, product_cost(36 * c.count * p.Ci * CB), [&](int64_t job, int thread) {
        const int64_t i = job / c.panels, q = job % c.panels;
        const float* const its = space + i * stretch_space;
        float* const m = sum + thread * 36 * panel_step;
        for (int64_t f = 0; f < 36; ++f) {
          c.add(0, its + f * c.in_step, its + g_at + f * c.g_step + q * c.g_panel, m + f * panel_step);
        }
        for (int64_t k = 0; k < p.Ci; k += VL) c.finish(s0 + i, q, k, m, panel_step);
      });
    } else {
      const int64_t chunks = ceil_div(p.Ci, VL);
      parallel_for(here * c.panels * chunks, pass_cost(36 * VL * CB), [&](int64_t job, int) {
        const int64_t i = job / (c.panels * chunks), q = job / chunks % c.panels;
        c.finish(s0 + i, q, job % chunks * VL, sum + i * c.sums + q * c.sum_panel, c.sum_step);
      });
    }
    if (p.gb == nullptr) continue;
    for (int64_t i = 0; i < here; ++i) {
      float* const gb = p.gb + (s0 + i) * p.gb_stride_s;
      for (int64_t n = 0; n < p.Co; ++n) gb[n] = 0.0f;
      for (int64_t j = 0; j < c.stretches * c.parts; ++j) {
        const float* const part = biases + i * bias_floats + j * c.Np;
        for (int64_t n = 0; n < p.Co; ++n) gb[n] += part[n];
      }
    }
  }
}

}  // namespace mct::MCT_ISA
