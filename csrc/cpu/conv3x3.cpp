#include "conv3x3.h"

#include "conv3x3_kernels.h"

namespace mct {
namespace {

void convolve(const ConvProblem& p, ConvAlgorithm how) {
  switch (active_isa()) {
#if MCT_X86_KERNELS
    case Isa::avx512: return avx512::convolve(p, how);
    case Isa::avx2: return avx2::convolve(p, how);
#endif
    default: return portable::convolve(p, how);
  }
}

void weight_gradient(const WeightProblem& p, ConvAlgorithm how) {
  switch (active_isa()) {
#if MCT_X86_KERNELS
    case Isa::avx512: return avx512::weight_gradient(p, how);
    case Isa::avx2: return avx2::weight_gradient(p, how);
#endif
    default: return portable::weight_gradient(p, how);
  }
}

}  // namespace

ConvAlgorithm choose_algorithm(const ConvShape& s, ConvPass pass) {
  const int64_t in = pass == ConvPass::input_grad ? s.Co : s.Ci;
  const int64_t out = pass == ConvPass::input_grad ? s.Ci : s.Co;
  if (pass != ConvPass::weight_grad && out <= 4 && in >= 8) return ConvAlgorithm::few_outputs;
  // A tile of 4x4 outputs costs 36 products instead of 144. Parts of tiles that hang over the edge are wasted, the
  // transforms want enough channels to be spread over, and each student's weights are transformed at the price of
  // about two tiles.
  const int64_t tiles = ((s.H + 3) / 4) * ((s.W + 3) / 4);
  const bool enough_channels = in >= 16 && out >= 16;
  const bool little_waste = 4 * s.H * s.W >= 24 * tiles;  // gain of at least 1.5 in products
  if (enough_channels && little_waste && s.B * tiles >= 4) return ConvAlgorithm::winograd;
  return ConvAlgorithm::direct;
}

void conv3x3_forward(const ConvShape& s, const float* x, const float* w, int64_t w_stride_s, const float* bias,
                     int64_t b_stride_s, const float* x2, const float* w2, int64_t w2_stride_s, float* z) {
  const ConvProblem p{s.S,  s.B,   s.H,  s.W,  s.Ci,  s.Co, x2 == nullptr ? 1 : 2, {x, x2}, {w, w2}, {w_stride_s, w2_stride_s},
                      9 * s.Ci, 9, false, bias, b_stride_s, z};
  convolve(p, choose_algorithm(s, ConvPass::forward));
}

void conv3x3_input_grad(const ConvShape& s, const float* g, const float* w, int64_t w_stride_s, const float* g2,
                        const float* w2, int64_t w2_stride_s, float* gx) {
  const ConvProblem p{s.S, s.B, s.H, s.W, s.Co, s.Ci, g2 == nullptr ? 1 : 2, {g, g2}, {w, w2}, {w_stride_s, w2_stride_s},
                      9, 9 * s.Ci, true, nullptr, 0, gx};
  convolve(p, choose_algorithm(s, ConvPass::input_grad));
}

void conv3x3_weight_grad(const ConvShape& s, const float* g, const float* x, const float* g2, const float* x2, float* gw,
                         int64_t gw_stride_s, float* gb, int64_t gb_stride_s) {
  const WeightProblem p{s.S, s.B, s.H, s.W, s.Ci, s.Co, g2 == nullptr ? 1 : 2, {x, x2}, {g, g2}, gw, gw_stride_s,
                        gb, gb_stride_s};
  weight_gradient(p, choose_algorithm(s, ConvPass::weight_grad));
}

}  // namespace mct
