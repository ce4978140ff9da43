// 3x3 convolutions, padding 1, stride 1, for S independent students at once: float32, and float64 by plain loops
// (conv3x3_double.cpp).
//
// Layouts (all contiguous inside one student):
//   x, gx : (S, B, H, W, Ci)      z, g : (S, B, H, W, Co)
//   w, gw : (S)[Co][Ci][3][3]     the student stride is given, so that w may be a view of a flat parameter buffer
//   bias, gb : (S)[Co]            likewise
// Pointers need only the alignment of their numbers. Outputs must not overlap inputs. Every element of an output is written.
//
// The functions are deterministic: the same call gives the same bits, whatever the number of OpenMP threads.
// Pairs (x2, w2), (g2, w2) or (g2, x2) serve tangents; both members of a pair are given or both are null.
#pragma once

#include <cstdint>

namespace mct {

struct ConvShape {
  int64_t S, B, H, W, Ci, Co;  // students, images a student, height, width, input and output channels; each >= 1
};

enum class ConvPass { forward, input_grad, weight_grad };

enum class ConvAlgorithm {
  direct,       // register-blocked, any shape
  few_outputs,  // one product with all nine taps as columns, then a shifted sum; for 1 to 4 output channels
  winograd,     // F(4x4, 3x3), for the weight gradient F(3x3, 4x4)
};

// The one place where an algorithm is chosen.
ConvAlgorithm choose_algorithm(const ConvShape& shape, ConvPass pass);

// z = w * x [+ w2 * x2] [+ bias]   (cross-correlation, as PyTorch's conv2d)
void conv3x3_forward(const ConvShape& shape, const float* x, const float* w, int64_t w_stride_s, const float* bias,
                     int64_t b_stride_s, const float* x2, const float* w2, int64_t w2_stride_s, float* z);

// gx = transpose(w) * g [+ transpose(w2) * g2]
void conv3x3_input_grad(const ConvShape& shape, const float* g, const float* w, int64_t w_stride_s, const float* g2,
                        const float* w2, int64_t w2_stride_s, float* gx);

// gw = g (*) x [+ g2 (*) x2];  gb = sum of g alone over images and pixels (gb may be null)
void conv3x3_weight_grad(const ConvShape& shape, const float* g, const float* x, const float* g2, const float* x2,
                         float* gw, int64_t gw_stride_s, float* gb, int64_t gb_stride_s);

// The same in double.
void conv3x3_forward(const ConvShape& shape, const double* x, const double* w, int64_t w_stride_s, const double* bias,
                     int64_t b_stride_s, const double* x2, const double* w2, int64_t w2_stride_s, double* z);
void conv3x3_input_grad(const ConvShape& shape, const double* g, const double* w, int64_t w_stride_s, const double* g2,
                        const double* w2, int64_t w2_stride_s, double* gx);
void conv3x3_weight_grad(const ConvShape& shape, const double* g, const double* x, const double* g2, const double* x2,
                         double* gw, int64_t gw_stride_s, double* gb, int64_t gb_stride_s);

}  // namespace mct
