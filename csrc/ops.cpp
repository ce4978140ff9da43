// The CPU kernels' entry into PyTorch's dispatcher: outputs are allocated here. Kernels are free of PyTorch's headers.
// Schemas, fake kernels and derivatives are Python's (mct_fast/ops); signature.h tells how arguments are checked.

#include <Python.h>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/conv3x3.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/simd.h"
#include "signature.h"

namespace {

using namespace mct::op;

// ------------------------------------------------------------------------------------------------------- outputs

// Outputs come from the pool: fresh pages cost more than the arithmetic that fills them.
class PoolAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* block = mct::pool_acquire(bytes);
    return {block, block, &mct::pool_release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &mct::pool_release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

constexpr int64_t kPooledBytes = 1 << 16;  // smaller outputs are malloc's business

Tensor fresh(at::IntArrayRef sizes, at::ScalarType dtype) {
  static PoolAllocator pool;
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(dtype));
  if (bytes < kPooledBytes) return at::detail::empty_cpu(sizes, dtype);
  return at::detail::empty_generic(sizes, &pool, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

// --------------------------------------------------------------------------------------------------- convolutions

mct::ConvShape conv_shape(const Tensor& x, int64_t Ci, int64_t Co) {
  return {x.size(0), x.size(1), x.size(2), x.size(3), Ci, Co};
}

Tensor conv3x3(const Tensor& x, const Tensor& w, Maybe bias, Maybe x2, Maybe w2) {
  const mct::ConvShape s = conv_shape(x, w.size(2), w.size(1));
  Tensor z = fresh({s.S, s.B, s.H, s.W, s.Co}, x.scalar_type());
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const auto w_ = param<T>(w), b_ = param<T>(bias), w2_ = param<T>(w2);
    mct::conv3x3_forward(s, data<T>(x), w_.data, w_.stride_s, b_.data, b_.stride_s, data<T>(x2), w2_.data, w2_.stride_s,
                         out<T>(z));
  });
  return z;
}

Tensor conv3x3_input_grad(const Tensor& g, const Tensor& w, Maybe g2, Maybe w2) {
  const mct::ConvShape s = conv_shape(g, w.size(2), w.size(1));
  Tensor gx = fresh({s.S, s.B, s.H, s.W, s.Ci}, g.scalar_type());
  by_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    const auto w_ = param<T>(w), w2_ = param<T>(w2);
    mct::conv3x3_input_grad(s, data<T>(g), w_.data, w_.stride_s, data<T>(g2), w2_.data, w2_.stride_s, out<T>(gx));
  });
  return gx;
}

std::tuple<Tensor, Tensor> conv3x3_weight_grad(const Tensor& g, const Tensor& x, Maybe g2, Maybe x2) {
  const mct::ConvShape s = conv_shape(g, x.size(4), g.size(4));
  Tensor gw = fresh({s.S, s.Co, s.Ci, 3, 3}, g.scalar_type()), gb = fresh({s.S, s.Co}, g.scalar_type());
  by_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    mct::conv3x3_weight_grad(s, data<T>(g), data<T>(x), data<T>(g2), data<T>(x2), out<T>(gw), s.Co * s.Ci * 9, out<T>(gb),
                             s.Co);
  });
  return {gw, gb};
}

// --------------------------------------------------------------------------------------------------------- blocks

mct::BlockShape block_shape(const Tensor& z, bool pool) {
  require(!pool || (z.size(2) > 1 && z.size(3) > 1));
  return {z.size(0), z.size(1), z.size(2), z.size(3), z.size(4), pool};
}

// Empty (S, B, C), (S, C), and the output of a block.
Tensor statistic(const mct::BlockShape& s, const Tensor& z) { return fresh({s.S, s.B, s.C}, z.scalar_type()); }
Tensor channels(const mct::BlockShape& s, const Tensor& z) { return fresh({s.S, s.C}, z.scalar_type()); }
Tensor pooled(const mct::BlockShape& s, const Tensor& z) {
  const int64_t by = s.pool ? 2 : 1;
  return fresh({s.S, s.B, s.H / by, s.W / by, s.C}, z.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> block_forward(const Tensor& z, Maybe gamma, Maybe beta, double eps, bool pool) {
  const auto s = block_shape(z, pool);
  Tensor p = pooled(s, z), mean = statistic(s, z), rstd = statistic(s, z);
  by_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    mct::block_forward<T>(s, data<T>(z), param<T>(gamma), param<T>(beta), eps, out<T>(p), out<T>(mean), out<T>(rstd));
  });
  return {p, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> block_backward(const Tensor& gp, const Tensor& z, const Tensor& mean,
                                                  const Tensor& rstd, Maybe gamma, Maybe beta, bool pool) {
  const auto s = block_shape(z, pool);
  Tensor gz = fresh(z.sizes(), z.scalar_type()), ggamma = channels(s, z), gbeta = channels(s, z);
  by_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    mct::block_backward<T>(s, data<T>(gp), data<T>(z), data<T>(mean), data<T>(rstd), param<T>(gamma), param<T>(beta),
                           out<T>(gz), out<T>(ggamma), out<T>(gbeta));
  });
  return {gz, ggamma, gbeta};
}

std::tuple<Tensor, Tensor, Tensor> block_tangent(const Tensor& z, const Tensor& zdot, const Tensor& mean,
                                                 const Tensor& rstd, Maybe gamma, Maybe beta, Maybe gammadot,
                                                 Maybe betadot, bool pool) {
  const auto s = block_shape(z, pool);
  Tensor pdot = pooled(s, z), m1 = statistic(s, z), m2 = statistic(s, z);
  by_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    mct::block_tangent<T>(s, data<T>(z), data<T>(zdot), data<T>(mean), data<T>(rstd), param<T>(gamma), param<T>(beta),
                          param<T>(gammadot), param<T>(betadot), out<T>(pdot), out<T>(m1), out<T>(m2));
  });
  return {pdot, m1, m2};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> block_tangent_backward(
    const Tensor& gp, const Tensor& gpdot, const Tensor& z, const Tensor& zdot, const Tensor& mean, const Tensor& rstd,
    const Tensor& mean_zdot, const Tensor& mean_xhat_zdot, Maybe gamma, Maybe beta, Maybe gammadot, Maybe betadot,
    bool pool) {
  const auto s = block_shape(z, pool);
  Tensor gz = fresh(z.sizes(), z.scalar_type()), gzdot = fresh(z.sizes(), z.scalar_type());
  Tensor ggammadot = channels(s, z), gbetadot = channels(s, z);
  by_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    mct::block_tangent_backward<T>(s, data<T>(gp), data<T>(gpdot), data<T>(z), data<T>(zdot), data<T>(mean),
                                   data<T>(rstd), data<T>(mean_zdot), data<T>(mean_xhat_zdot), param<T>(gamma),
                                   param<T>(beta), param<T>(gammadot), out<T>(gz), out<T>(gzdot), out<T>(ggammadot),
                                   out<T>(gbetadot));
  });
  return {gz, gzdot, ggammadot, gbetadot};
}

// --------------------------------------------------------------------------------------------------- linear layer

mct::LinearShape linear_shape(const Tensor& h, const Tensor& w) { return {h.size(0), h.size(1), h.size(2), w.size(1)}; }

// What the four operators return: (S,) first, the others shaped as one of their arguments.
Tensor losses(const Tensor& h) { return fresh({h.size(0)}, h.scalar_type()); }
Tensor like(const Tensor& t) { return fresh(t.sizes(), t.scalar_type()); }

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_ce(const Tensor& h, const Tensor& w, const Tensor& b,
                                                     const Tensor& y) {
  Tensor loss = losses(h), gh = like(h), gw = like(w), gb = like(b);
  by_dtype(h, [&](auto zero) {
    using T = decltype(zero);
    mct::linear_ce<T>(linear_shape(h, w), data<T>(h), param<T>(w), param<T>(b), data<T>(y), out<T>(loss), out<T>(gh),
                      out<T>(gw), out<T>(gb));
  });
  return {loss, gh, gw, gb};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_ce_tangent(const Tensor& h, const Tensor& hdot,
                                                                             const Tensor& w, const Tensor& wdot,
                                                                             const Tensor& b, const Tensor& bdot,
                                                                             const Tensor& y) {
  Tensor loss_dot = losses(h), gh = like(h), ghdot = like(h), gwdot = like(w), gbdot = like(b), gydot = like(y);
  by_dtype(h, [&](auto zero) {
    using T = decltype(zero);
    mct::linear_ce_tangent<T>(linear_shape(h, w), data<T>(h), data<T>(hdot), param<T>(w), param<T>(wdot), param<T>(b),
                              param<T>(bdot), data<T>(y), out<T>(loss_dot), out<T>(gh), out<T>(ghdot), out<T>(gwdot),
                              out<T>(gbdot), out<T>(gydot));
  });
  return {loss_dot, gh, ghdot, gwdot, gbdot, gydot};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_bce(const Tensor& h, const Tensor& w, const Tensor& b, const Tensor& y,
                                                      const Tensor& pos, const Tensor& neg) {
  Tensor loss = losses(h), gh = like(h), gw = like(w), gb = like(b);
  by_dtype(h, [&](auto zero) {
    using T = decltype(zero);
    mct::linear_bce<T>(linear_shape(h, w), data<T>(h), param<T>(w), param<T>(b), data<T>(y), data<T>(pos), data<T>(neg),
                       out<T>(loss), out<T>(gh), out<T>(gw), out<T>(gb));
  });
  return {loss, gh, gw, gb};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_bce_tangent(
    const Tensor& h, const Tensor& hdot, const Tensor& w, const Tensor& wdot, const Tensor& b, const Tensor& bdot,
    const Tensor& y, const Tensor& pos, const Tensor& neg) {
  Tensor loss_dot = losses(h), gh = like(h), ghdot = like(h), gwdot = like(w), gbdot = like(b), gydot = like(y);
  by_dtype(h, [&](auto zero) {
    using T = decltype(zero);
    mct::linear_bce_tangent<T>(linear_shape(h, w), data<T>(h), data<T>(hdot), param<T>(w), param<T>(wdot), param<T>(b),
                               param<T>(bdot), data<T>(y), data<T>(pos), data<T>(neg), out<T>(loss_dot), out<T>(gh),
                               out<T>(ghdot), out<T>(gwdot), out<T>(gbdot), out<T>(gydot));
  });
  return {loss_dot, gh, ghdot, gwdot, gbdot, gydot};
}

// ------------------------------------------------------------------------------------------------ flat parameters

// The number of layers; the offsets rise from 0 to P.
int64_t layers(const Tensor& offsets, int64_t P) {
  const int64_t L = offsets.size(0) - 1;
  const int64_t* o = data<int64_t>(offsets);
  bool rising = o[0] == 0 && o[L] == P;
  for (int64_t i = 0; i < L; ++i) rising = rising && o[i] <= o[i + 1];
  require(rising);
  return L;
}

std::tuple<Tensor, Tensor> matching_loss(const Tensor& theta, const Tensor& origin, const Tensor& end,
                                         const Tensor& frac, const Tensor& offsets, const Tensor& denom) {
  const int64_t S = theta.size(0), P = theta.size(1), L = layers(offsets, P);
  Tensor loss = losses(theta), grad = like(theta);
  by_dtype(theta, [&](auto zero) {
    using T = decltype(zero);
    mct::matching_loss<T>(S, P, L, param<T>(theta), param<T>(origin), param<T>(end), param<T>(frac),
                          data<int64_t>(offsets), data<T>(denom), out<T>(loss), out<T>(grad));
  });
  return {loss, grad};
}

void sgd_step_(const Tensor& params, const Tensor& grad, Maybe buffer, const Tensor& lr, double momentum,
               double weight_decay) {
  const int64_t S = params.size(0), P = params.size(1);
  require(buffer || momentum == 0);
  for (const Tensor* written : {&params, buffer ? &*buffer : nullptr}) {
    if (written == nullptr) continue;
    require(S == 1 || written->stride(0) >= P);
    for (const Tensor* other : {&params, &grad, &lr, buffer ? &*buffer : nullptr}) {
      require(other == nullptr || other == written || !shares_memory(*written, *other));
    }
  }
  by_dtype(params, [&](auto zero) {
    using T = decltype(zero);
    mct::sgd_step<T>(S, P, out<T>(params), params.stride(0), param<T>(grad), buffer ? out<T>(*buffer) : nullptr,
                     buffer ? buffer->stride(0) : 0, data<T>(lr), momentum, weight_decay);
  });
}

Tensor arc_length(const Tensor& previous, const Tensor& current, const Tensor& offsets) {
  const int64_t S = previous.size(0), P = previous.size(1), L = layers(offsets, P);
  Tensor length = fresh({S, L}, at::kDouble);
  by_dtype(previous, [&](auto zero) {
    using T = decltype(zero);
    mct::arc_length<T>(S, P, L, param<T>(previous), param<T>(current), data<int64_t>(offsets), out<double>(length));
  });
  return length;
}

// --------------------------------------------------------------------------------------------------- augmentation

template <bool transpose>
Tensor augment(const Tensor& x, const Tensor& kinds, const Tensor& params) {
  const mct::ImageShape s{x.size(0), x.size(1), x.size(2), x.size(3), x.size(4)};
  require(s.H > 1 && s.W > 1);
  for (int64_t i = 0; i < s.S; ++i) require(data<int64_t>(kinds)[i] >= 0 && data<int64_t>(kinds)[i] < 7);
  Tensor y = like(x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    mct::dsa<T>(s, data<T>(x), data<int64_t>(kinds), data<float>(params), transpose, out<T>(y));
  });
  return y;
}

// ---------------------------------------------------------------------------------------------- for tests and tools

// The instruction set in use: 0 portable, 1 AVX2, 2 AVX-512. A number chooses one; -1 only asks.
int64_t instruction_set(int64_t wanted) {
  if (wanted >= 0) {
    TORCH_CHECK_VALUE(wanted <= 2 && mct::set_isa(static_cast<mct::Isa>(wanted)), "wanted: instruction set ", wanted,
                      " is not available here");
  }
  return static_cast<int64_t>(mct::active_isa());
}

void declare(const std::string& op, const std::vector<std::string>& tensors) { signature_of(op).declare(tensors); }

}  // namespace

// No operators: what Python declares of them, and a switch for tests.
TORCH_LIBRARY_FRAGMENT(mct_fast, m) {
  m.def("_declare(str op, str[] tensors) -> ()", &declare);
  m.def("_instruction_set(int wanted) -> int", &instruction_set);
}

TORCH_LIBRARY_IMPL(mct_fast, CPU, m) {
  m.impl("conv3x3", checked<&conv3x3>("conv3x3"));
  m.impl("conv3x3_input_grad", checked<&conv3x3_input_grad>("conv3x3_input_grad"));
  m.impl("conv3x3_weight_grad", checked<&conv3x3_weight_grad>("conv3x3_weight_grad"));
  m.impl("block_forward", checked<&block_forward>("block_forward"));
  m.impl("block_backward", checked<&block_backward>("block_backward"));
  m.impl("block_tangent", checked<&block_tangent>("block_tangent"));
  m.impl("block_tangent_backward", checked<&block_tangent_backward>("block_tangent_backward"));
  m.impl("linear_ce", checked<&linear_ce>("linear_ce"));
  m.impl("linear_ce_tangent", checked<&linear_ce_tangent>("linear_ce_tangent"));
  m.impl("linear_bce", checked<&linear_bce>("linear_bce"));
  m.impl("linear_bce_tangent", checked<&linear_bce_tangent>("linear_bce_tangent"));
  m.impl("matching_loss", checked<&matching_loss>("matching_loss"));
  m.impl("sgd_step_", checked<&sgd_step_>("sgd_step_"));
  m.impl("arc_length", checked<&arc_length>("arc_length"));
  m.impl("dsa", checked<&augment<false>>("dsa"));
  m.impl("dsa_transpose", checked<&augment<true>>("dsa_transpose"));
}

// An empty Python module: importing it loads the library, whose initialisers register the kernels.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
