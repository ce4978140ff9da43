// Placeholder until the Winograd kernels are in: the direct kernels serve.

namespace mct::MCT_ISA {

static void convolve_winograd(const ConvProblem& p) { convolve_direct(p); }
static void weight_gradient_winograd(const WeightProblem& p) { weight_gradient_direct(p); }

}  // namespace mct::MCT_ISA
