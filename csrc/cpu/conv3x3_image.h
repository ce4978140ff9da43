// A convolution with few input channels for one image and one panel of output channels: what the fused first block is
// made of (first_block.cpp). No include guard: MCT_ISA names the copy.

namespace mct::MCT_ISA {

// One image (H, W, K) with a border of zeros: (H + 2, W + 2, K).
static void image_pad(const ImagePlane& p, const float* image, float* padded) {
  const ConvProblem one{1, 1, p.H, p.W, p.K, 0, 1, {image, nullptr}, {nullptr, nullptr}, {0, 0}, 0, 0, false, nullptr, 0, nullptr};
  pad_rows(one, 0, 0, 0, p.H, padded);
}

// w[n][k][tap] of `columns` output channels to [tap][k][CB].
static void image_pack(int64_t K, int64_t columns, const float* w, float* packed) {
  for (int64_t k = 0; k < K; ++k) {
    for (int t = 0; t < 9; ++t) {
      float* const row = packed + (t * K + k) * CB;
      for (int64_t n = 0; n < CB; ++n) row[n] = n < columns ? w[n * 9 * K + k * 9 + t] : 0.0f;
    }
  }
}

// z (H, W, CB) = packed * padded + bias.
static void image_convolve(const ImagePlane& p, const float* padded, const float* packed, const float* bias, float* z) {
  const int64_t line = (p.W + 2) * p.K, tap_line = 3 * p.K * CB;
  for (int64_t y = 0; y < p.H; ++y) {
    const float* const a = padded + y * line;
    const Stretch lines[3] = {panel_stretch(a, packed, 3 * p.K), panel_stretch(a + line, packed + tap_line, 3 * p.K),
                              panel_stretch(a + 2 * line, packed + 2 * tap_line, 3 * p.K)};
    product(lines, 3, p.W, p.K, 3 * p.K, z + y * p.W * CB, CB, bias, CB);
  }
}

// sums (9 K + 1, CB) = the taps' gradients of this image, row (ky * 3 + kx) * K + k, and the sum of g (H, W, CB). Summed
// over about 128 pixels at a time, as the convolutions by themselves do.
static void image_weight_grad(const ImagePlane& p, const float* padded, const float* g, float* sums) {
  const int64_t line = (p.W + 2) * p.K, lines = least(p.H, most(1, 128 / p.W));
  const int64_t width = 3 * p.K, blocks = ceil_div(width, RMAX);
  float* const total = sums + 9 * p.K * CB;
  for (int64_t y0 = 0; y0 < p.H; y0 += lines) {
    const int64_t rows = least(lines, p.H - y0);
    const float* const here = g + y0 * p.W * CB;
    for (int ky = 0; ky < 3; ++ky) {
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t r0 = part_begin(width, blocks, i), r1 = part_begin(width, blocks, i + 1);
        kProductOuter[r1 - r0](padded + (y0 + ky) * line + r0, p.K, line, here, CB, p.W * CB, rows, p.W,
                               sums + (ky * width + r0) * CB, y0 > 0, here);
      }
    }
    vf t0 = vf{}, t1 = vf{};
    for (int64_t i = 0; i < rows * p.W; ++i) t0 += load(here + i * CB), t1 += load(here + i * CB + VL);
    store(total, y0 > 0 ? t0 + load(total) : t0);
    store(total + VL, y0 > 0 ? t1 + load(total + VL) : t1);
  }
}

// w[n][k][tap] of `rows` output channels n to the operand of image_spread: [panel][n][CB], column (8 - tap) * K + k.
static void image_pack_taps(int64_t K, int64_t rows, const float* w, float* packed) {
  const int64_t columns = 9 * K, panels = ceil_div(columns, CB);
  for (int64_t q = 0; q < panels; ++q) {
    for (int64_t n = 0; n < rows; ++n) {
      float* const row = packed + (q * CB + n) * CB;
      for (int64_t i = 0; i < CB; ++i) {
        const int64_t column = q * CB + i;
        row[i] = column < columns ? w[(n * K + column % K) * 9 + 8 - column / K] : 0.0f;
      }
    }
  }
}

// Adds what `channels` channels of g1 and g2 (H, W, CB) contribute to the gradient of every input that a tap reaches:
// products (H + 2, image_products_line), whose border is zero and stays so.
static void image_spread(const ImagePlane& p, int64_t channels, const float* g1, const float* taps1, const float* g2,
                         const float* taps2, float* products) {
  const int64_t panels = ceil_div(9 * p.K, CB), Np = panels * CB, line = product_line(p.W, Np);
  const int64_t blocks = ceil_div(p.W, RMAX);
  float part[RMAX * CB];
  for (int64_t y = 0; y < p.H; ++y) {
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t x0 = part_begin(p.W, blocks, i), x1 = part_begin(p.W, blocks, i + 1), at = (y * p.W + x0) * CB;
      for (int64_t q = 0; q < panels; ++q) {
        const Stretch pair[2] = {{g1 + at, taps1 + q * CB * CB, g1 + at}, {g2 + at, taps2 + q * CB * CB, g2 + at}};
        kProductRows[x1 - x0](pair, 2, CB, channels, part, CB, nullptr, CB, false);
        float* const to = products + (y + 1) * line + (x0 + 1) * Np + q * CB;
        for (int64_t x = 0; x < x1 - x0; ++x) {
          store(to + x * Np, load(to + x * Np) + load(part + x * CB));
          store(to + x * Np + VL, load(to + x * Np + VL) + load(part + x * CB + VL));
        }
      }
    }
  }
}

// gx (H, W, K): every input's products, shifted and added. `sums` has room for tap_sums_line(W, K) floats.
static void image_collect(const ImagePlane& p, const float* products, float* sums, float* gx) {
  const int64_t Np = ceil_div(9 * p.K, CB) * CB, line = product_line(p.W, Np);
  const float no_bias[4] = {};
  for (int64_t y = 0; y < p.H; ++y) {
    const float* const above = products + y * line;
    add_taps(above, above + line, above + 2 * line, p.W, p.K, Np, no_bias, sums, gx + y * p.W * p.K);
  }
}

static int64_t image_products(const ImagePlane& p) { return (p.H + 2) * product_line(p.W, ceil_div(9 * p.K, CB) * CB); }
static int64_t image_sums(const ImagePlane& p) { return tap_sums_line(p.W, p.K); }

const ImageUnits& image_units() {
  static constexpr ImageUnits table = {CB,          image_pad,       image_pack,   image_convolve, image_weight_grad,
                                       image_pack_taps, image_spread, image_collect, image_products, image_sums};
  return table;
}

}  // namespace mct::MCT_ISA
