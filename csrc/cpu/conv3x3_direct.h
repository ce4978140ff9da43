// Direct 3x3 convolutions: the image is copied with a border of zeros, then every output row is a product of shifted
// rows with packed weights. No include guard: MCT_ISA names the copy.

namespace mct::MCT_ISA {

// Rows [y0 - 1, y1 + 1) of one image with a border of zeros: (y1 - y0 + 2, W + 2, pairs * K) floats.
static void pad_rows(const ConvProblem& p, int64_t s, int64_t b, int64_t y0, int64_t y1, float* out) {
  const int64_t Kt = p.pairs * p.K, line = (p.W + 2) * Kt;
  for (int64_t y = y0 - 1; y <= y1; ++y, out += line) {
    if (y < 0 || y >= p.H) {
      clear(out, line);
      continue;
    }
    clear(out, Kt);
    clear(out + line - Kt, Kt);
    for (int h = 0; h < p.pairs; ++h) {
      const float* from = p.x[h] + ((s * p.B + b) * p.H + y) * p.W * p.K;
      float* to = out + Kt + h * p.K;
      if (p.pairs == 1) {
        copy(to, from, p.W * p.K);
      } else {
        for (int64_t x = 0; x < p.W; ++x) copy(to + x * Kt, from + x * p.K, p.K);
      }
    }
  }
}

// The bias of one student, padded with zeros to whole panels.
static void pad_bias(const ConvProblem& p, int64_t s, float* out, int64_t padded) {
  for (int64_t n = 0; n < padded; ++n) out[n] = p.bias != nullptr && n < p.N ? p.bias[s * p.bias_stride_s + n] : 0.0f;
}

// How many rows of an image one piece of work takes: about four pieces a thread. Bits do not depend on it.
static int64_t rows_a_piece(int64_t images, int64_t H, int64_t W) {
  const int64_t wanted = 4 * static_cast<int64_t>(max_threads());
  const int64_t pieces = least(ceil_div(wanted, images), ceil_div(H * W, 64));
  return ceil_div(H, most(1, least(pieces, H)));
}

static void convolve_direct(const ConvProblem& p) {
  const int64_t Kt = p.pairs * p.K, panels = ceil_div(p.N, CB), Np = panels * CB;
  const int64_t panel = 9 * Kt * CB;
  const Scratch packed_scratch(static_cast<size_t>(p.S * (panels * panel + Np)) * sizeof(float));
  float* const packed = packed_scratch.floats();          // (S, panels, 3 * 3, Kt, CB)
  float* const bias = packed + p.S * panels * panel;      // (S, Np)
  parallel_for(p.S * panels, pass_cost(panel), [&](int64_t job, int) {
    const int64_t s = job / panels, n0 = job % panels * CB, columns = least(CB, p.N - n0);
    float* to = packed + job * panel;
    for (int h = 0; h < p.pairs; ++h) {
      const float* w = p.w[h] + s * p.w_stride_s[h] + n0 * p.w_n;
      for (int64_t k = 0; k < p.K; ++k) {
        for (int t = 0; t < 9; ++t) {
          const float* from = w + k * p.w_k + (p.flipped ? 8 - t : t);
          float* row = to + (t * Kt + h * p.K + k) * CB;
          for (int64_t n = 0; n < columns; ++n) row[n] = from[n * p.w_n];
          for (int64_t n = columns; n < CB; ++n) row[n] = 0.0f;
        }
      }
    }
    if (n0 == 0) pad_bias(p, s, bias + s * Np, Np);
  });

  const bool streaming = worth_streaming(p.out, p.S * p.B * p.H * p.W, p.N);
  const int64_t rows = rows_a_piece(p.S * p.B, p.H, p.W), pieces = ceil_div(p.H, rows);
  const int64_t line = (p.W + 2) * Kt, padded = (rows + 2) * line + kRoom;
  const Scratch padded_scratch(static_cast<size_t>(max_threads() * padded) * sizeof(float));
  parallel_for(p.S * p.B * pieces, product_cost(rows * p.W * 9 * Kt * Np), [&](int64_t job, int thread) {
    const int64_t image = job / pieces, s = image / p.B, y0 = job % pieces * rows, y1 = least(p.H, y0 + rows);
    float* const in = padded_scratch.floats() + thread * padded;
    pad_rows(p, s, image % p.B, y0, y1, in);
    for (int64_t y = y0; y < y1; ++y) {
      float* out = p.out + (image * p.H + y) * p.W * p.N;
      for (int64_t q = 0; q < panels; ++q) {
        const float* w = packed + (s * panels + q) * panel;
        const float* a = in + (y - y0) * line;
        // The three taps of a line are neighbours in both operands: one stretch of 3 * Kt.
        const int64_t tap_line = 3 * Kt * CB;
        const Stretch lines[3] = {panel_stretch(a, w, 3 * Kt), panel_stretch(a + line, w + tap_line, 3 * Kt),
                                  panel_stretch(a + 2 * line, w + 2 * tap_line, 3 * Kt)};
        product(lines, 3, p.W, Kt, 3 * Kt, out + q * CB, p.N, bias + s * Np + q * CB, p.N - q * CB,
                streaming);
      }
    }
    if (streaming) stream_end();
  });
}

// For one to four output channels: all nine taps of all outputs are the columns of one product, which are then
// shifted and added. A quarter or less of the columns are padding where the direct form would waste nearly all.
typedef float float4 __attribute__((vector_size(16)));

// Floats of the products of one input line, Np a pixel, with a border of zeros; and of the sums that add_taps needs.
MCT_INLINE int64_t product_line(int64_t W, int64_t Np) { return (W + 2) * Np + VL; }
MCT_INLINE int64_t taps_across(int64_t N) { return round_up(3 * N, VL) + VL; }
MCT_INLINE int64_t tap_sums_line(int64_t W, int64_t N) { return (W + 2) * taps_across(N); }

// One output line (W, N) from the products of the three input lines that it sees; column = tap * N + n.
static void add_taps(const float* above, const float* same, const float* below, int64_t W, int64_t N, int64_t Np,
                     const float* bias, float* sums, float* out) {
  const int64_t wide = 3 * N, across = taps_across(N);  // floats of one pixel that meet in one output line
  for (int64_t x = 0; x < W + 2; ++x) {
    for (int64_t i = 0; i < wide; i += VL) {
      store(sums + x * across + i,
            load(above + x * Np + i) + load(same + wide + x * Np + i) + load(below + 2 * wide + x * Np + i));
    }
  }
  // Four lanes at a time, of which the first N count: a later pixel overwrites what an earlier one wrote too much.
  float4 add;
  memcpy(&add, bias, sizeof add);
  for (int64_t x = 0; x < W; ++x) {
    float4 left, middle, right;
    memcpy(&left, sums + x * across, sizeof left);
    memcpy(&middle, sums + (x + 1) * across + N, sizeof middle);
    memcpy(&right, sums + (x + 2) * across + 2 * N, sizeof right);
    const float4 total = left + middle + right + add;
    if (x * N + 4 <= W * N) {
      memcpy(out + x * N, &total, sizeof total);
    } else {
      memcpy(out + x * N, &total, static_cast<size_t>(N) * sizeof(float));
    }
  }
}

static void convolve_few_outputs(const ConvProblem& p) {
  const int64_t columns = 9 * p.N, panels = ceil_div(columns, CB), Np = panels * CB, panel = p.K * CB;
  const Scratch packed_scratch(static_cast<size_t>(p.S * p.pairs * panels * panel) * sizeof(float));
  float* const packed = packed_scratch.floats();  // (S, pairs, panels, K, CB), column = tap * N + n
  parallel_for(p.S * p.pairs, pass_cost(panels * panel), [&](int64_t job, int) {
    const int64_t s = job / p.pairs;
    const int h = static_cast<int>(job % p.pairs);
    const float* w = p.w[h] + s * p.w_stride_s[h];
    float* to = packed + job * panels * panel;
    for (int64_t q = 0; q < panels; ++q) {
      for (int64_t k = 0; k < p.K; ++k, to += CB) {
        for (int64_t i = 0; i < CB; ++i) {
          const int64_t column = q * CB + i, t = column / p.N, n = column % p.N;
          to[i] = column < columns ? w[n * p.w_n + k * p.w_k + (p.flipped ? 8 - t : t)] : 0.0f;
        }
      }
    }
  });

  const int64_t rows = rows_a_piece(p.S * p.B, p.H, p.W), pieces = ceil_div(p.H, rows);
  const int64_t ring = product_line(p.W, Np);
  const int64_t space = round_up(3 * ring + tap_sums_line(p.W, p.N), 16) + kRoom;
  const Scratch line_scratch(static_cast<size_t>(max_threads() * space) * sizeof(float));
  parallel_for(p.S * p.B * pieces, product_cost(rows * p.W * p.pairs * p.K * Np), [&](int64_t job, int thread) {
    const int64_t image = job / pieces, s = image / p.B, y0 = job % pieces * rows, y1 = least(p.H, y0 + rows);
    float* const lines = line_scratch.floats() + thread * space;
    float* const sums = lines + 3 * ring;
    float bias[4] = {};
    for (int64_t n = 0; n < p.N && p.bias != nullptr; ++n) bias[n] = p.bias[s * p.bias_stride_s + n];
    for (int64_t i = 0; i < 3; ++i) {
      clear(lines + i * ring, Np);
      clear(lines + i * ring + (p.W + 1) * Np, Np + VL);
    }
    // Line y of the input leaves its products in the ring at y mod 3.
    for (int64_t y = y0 - 1; y <= y1; ++y) {
      float* const products = lines + (y + 3) % 3 * ring;
      if (y < 0 || y >= p.H) {
        clear(products, ring);
      } else {
        const int64_t blocks = ceil_div(p.W, RMAX);
        for (int64_t i = 0; i < blocks; ++i) {
          const int64_t x0 = part_begin(p.W, blocks, i), x1 = part_begin(p.W, blocks, i + 1);
          for (int64_t q = 0; q < panels; ++q) {
            Stretch stretch[2];
            for (int h = 0; h < p.pairs; ++h) {
              const float* const a = p.x[h] + ((image * p.H + y) * p.W + x0) * p.K;
              // The pixels after these are fetched ahead.
              stretch[h] = {a, packed + ((s * p.pairs + h) * panels + q) * panel, a + (x1 - x0) * p.K};
            }
            kProductRows[x1 - x0](stretch, p.pairs, p.K, p.K, products + (x0 + 1) * Np + q * CB, Np, nullptr, CB,
                                  false);
          }
        }
      }
      if (y <= y0) continue;
      const int64_t at = y - 1;  // the output line whose three input lines are here now
      add_taps(lines + (at + 2) % 3 * ring, lines + at % 3 * ring, lines + (at + 1) % 3 * ring, p.W, p.N, Np, bias, sums,
               p.out + (image * p.H + at) * p.W * p.N);
    }
  });
}

// The weight gradient, as sums over runs of about 128 pixels. Runs are added up in a fixed number of groups, whose sums
// are added in order at the end: bits do not depend on the number of threads.
static void weight_gradient_direct(const WeightProblem& p) {
  const int64_t panels = ceil_div(p.Co, CB), rows = 9 * p.Ci + 1;  // the last row is the sum of g
  const int64_t lines = least(p.H, most(1, 128 / p.W)), runs_an_image = ceil_div(p.H, lines), runs = p.B * runs_an_image;
  const int64_t sums = panels * rows * CB;
  const int64_t groups = least(runs, most(1, least(32, (int64_t{1} << 22) / sums)));
  const Scratch sums_scratch(static_cast<size_t>(p.S * groups * sums) * sizeof(float));
  float* const partial = sums_scratch.floats();  // (S, groups, panels, 9 * Ci + 1, CB), row = (ky * 3 + kx) * Ci + ci

  const bool whole = p.Co % CB == 0;
  const int64_t line = (p.W + 2) * p.Ci, padded = round_up((lines + 2) * line, 16);
  const int64_t pixels = lines * p.W, packed = whole ? 0 : panels * pixels * CB;
  const int64_t space = padded + packed + kRoom;
  const Scratch thread_scratch(static_cast<size_t>(max_threads() * space) * sizeof(float));
  parallel_for(p.S * groups, product_cost(ceil_div(runs, groups) * pixels * p.pairs * sums), [&](int64_t job, int thread) {
    const int64_t s = job / groups, first = part_begin(runs, groups, job % groups),
                  last = part_begin(runs, groups, job % groups + 1);
    float* const in = thread_scratch.floats() + thread * space;
    float* const g_packed = in + padded;
    float* const sum = partial + job * sums;
    for (int64_t run = first; run < last; ++run) {
      const int64_t image = s * p.B + run / runs_an_image, y0 = run % runs_an_image * lines, y1 = least(p.H, y0 + lines);
      for (int h = 0; h < p.pairs; ++h) {
        const bool add = run > first || h > 0;
        const ConvProblem image_problem{1, p.S * p.B, p.H, p.W, p.Ci, p.Co, 1, {p.x[h], nullptr}, {nullptr, nullptr},
                                        {0, 0}, 0, 0, false, nullptr, 0, nullptr};
        pad_rows(image_problem, 0, image, y0, y1, in);
        const int64_t count = (y1 - y0) * p.W;
        const float* const g = p.g[h] + (image * p.H + y0) * p.W * p.Co;
        if (!whole) {
          for (int64_t q = 0; q < panels; ++q) {
            const int64_t columns = least(CB, p.Co - q * CB);
            for (int64_t i = 0; i < count; ++i) {
              float* to = g_packed + (q * pixels + i) * CB;
              const float* from = g + i * p.Co + q * CB;
              for (int64_t n = 0; n < CB; ++n) to[n] = n < columns ? from[n] : 0.0f;
            }
          }
        }
        // What the next run will read of g is fetched meanwhile; runs follow one another in memory.
        const float* ahead = g + count * p.Co;
        for (int64_t q = 0; q < panels; ++q) {
          const float* b = whole ? g + q * CB : g_packed + q * pixels * CB;
          const int64_t ldb = whole ? p.Co : CB;
          float* const c = sum + q * rows * CB;
          for (int ky = 0; ky < 3; ++ky) {
            const int64_t width = 3 * p.Ci, blocks = ceil_div(width, RMAX);
            for (int64_t i = 0; i < blocks; ++i) {
              const int64_t r0 = part_begin(width, blocks, i), r1 = part_begin(width, blocks, i + 1);
              kProductOuter[r1 - r0](in + ky * line + r0, p.Ci, line, b, ldb, p.W * ldb, y1 - y0, p.W,
                                     c + (ky * width + r0) * CB, add, ahead);
              ahead += 16 * count;
            }
          }
          if (h == 0) {
            float* const total = c + 9 * p.Ci * CB;
            vf t0 = vf{}, t1 = vf{};
            for (int64_t i = 0; i < count; ++i) t0 += load(b + i * ldb), t1 += load(b + i * ldb + VL);
            store(total, run > first ? t0 + load(total) : t0);
            store(total + VL, run > first ? t1 + load(total + VL) : t1);
          }
        }
      }
    }
  });

  const int64_t chunk = most(1, least(p.Ci, 512 / CB)), chunks = ceil_div(p.Ci, chunk);
  parallel_for(p.S * panels * chunks, pass_cost(9 * chunk * groups * CB), [&](int64_t job, int) {
    const int64_t s = job / (panels * chunks), q = job / chunks % panels, c0 = job % chunks * chunk,
                  c1 = least(p.Ci, c0 + chunk), columns = least(CB, p.Co - q * CB);
    const float* const from = partial + s * groups * sums + q * rows * CB;
    float t[CB];
    const auto total = [&](int64_t row) {
      vf t0 = load(from + row * CB), t1 = load(from + row * CB + VL);
      for (int64_t i = 1; i < groups; ++i) {
        t0 += load(from + i * sums + row * CB);
        t1 += load(from + i * sums + row * CB + VL);
      }
      store(t, t0);
      store(t + VL, t1);
    };
    for (int64_t ci = c0; ci < c1; ++ci) {
      for (int tap = 0; tap < 9; ++tap) {
        total(tap * p.Ci + ci);
        float* to = p.gw + s * p.gw_stride_s + (q * CB * p.Ci + ci) * 9 + tap;
        for (int64_t n = 0; n < columns; ++n) to[n * p.Ci * 9] = t[n];
      }
    }
    if (c0 == 0 && p.gb != nullptr) {
      total(9 * p.Ci);
      for (int64_t n = 0; n < columns; ++n) p.gb[s * p.gb_stride_s + q * CB + n] = t[n];
    }
  });
}

}  // namespace mct::MCT_ISA
