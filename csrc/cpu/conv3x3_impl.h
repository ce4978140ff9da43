// The 3x3 convolutions for one instruction set. No include guard: MCT_ISA names the copy.
#include "conv3x3_products.h"

#include "conv3x3_direct.h"

#include "conv3x3_image.h"

#include "conv3x3_winograd.h"

namespace mct::MCT_ISA {

void convolve(const ConvProblem& p, ConvAlgorithm how) {
  switch (how) {
    case ConvAlgorithm::winograd: return convolve_winograd(p);
    case ConvAlgorithm::few_outputs: return convolve_few_outputs(p);
    default: return convolve_direct(p);
  }
}

void weight_gradient(const WeightProblem& p, ConvAlgorithm how) {
  if (how == ConvAlgorithm::winograd) return weight_gradient_winograd(p);
  return weight_gradient_direct(p);
}

}  // namespace mct::MCT_ISA
