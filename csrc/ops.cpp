// Schemas of the operators, and the CPU kernels' entry into PyTorch's dispatcher: arguments are checked here, outputs are
// allocated here. Kernels are free of PyTorch's headers. Fake kernels and derivatives are
// registered in mct_fast/ops/registry.py; mct_fast/ops/schema.py repeats the schemas for installs without the extension.

#include <Python.h>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/conv3x3.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/simd.h"

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
// float32 on csrc/cpu/conv3x3.h; float64, the dtype of the oracles, on PyTorch's own convolution.

Tensor nchw(const Tensor& x, int64_t s) { return x.select(0, s).permute({0, 3, 1, 2}); }

Tensor conv3x3(const Tensor& x, const Tensor& w, Maybe bias, Maybe x2, Maybe w2) {
  const Checks check("x", x);
  check.activation("x", x, {kAny, kAny, kAny, kAny, kAny});
  const int64_t S = x.size(0), B = x.size(1), H = x.size(2), W = x.size(3), Ci = x.size(4);
  check.parameter("w", w, {S, kAny, Ci, 3, 3});
  const int64_t Co = w.size(1);
  check.parameter("bias", bias, {S, Co});
  together("x2", x2.has_value(), "w2", w2.has_value());
  check.activation("x2", x2, {S, B, H, W, Ci});
  check.parameter("w2", w2, {S, Co, Ci, 3, 3});
  Tensor z = fresh({S, B, H, W, Co}, x.scalar_type());
  if (x.scalar_type() == at::kFloat) {
    const auto w_ = param<float>(w), b_ = param<float>(bias), w2_ = param<float>(w2);
    mct::conv3x3_forward({S, B, H, W, Ci, Co}, data<float>(x), w_.data, w_.stride_s, b_.data, b_.stride_s,
                         data<float>(x2), w2_.data, w2_.stride_s, out<float>(z));
    return z;
  }
  for (int64_t s = 0; s < S; ++s) {
    const std::optional<Tensor> b = bias ? std::optional<Tensor>(bias->select(0, s)) : std::nullopt;
    Tensor one = at::conv2d(nchw(x, s), w.select(0, s), b, {1, 1}, {1, 1});
    if (x2) one = one + at::conv2d(nchw(*x2, s), w2->select(0, s), {}, {1, 1}, {1, 1});
    z.select(0, s).copy_(one.permute({0, 2, 3, 1}));
  }
  return z;
}

Tensor conv3x3_input_grad(const Tensor& g, const Tensor& w, Maybe g2, Maybe w2) {
  const Checks check("g", g);
  check.activation("g", g, {kAny, kAny, kAny, kAny, kAny});
  const int64_t S = g.size(0), B = g.size(1), H = g.size(2), W = g.size(3), Co = g.size(4);
  check.parameter("w", w, {S, Co, kAny, 3, 3});
  const int64_t Ci = w.size(2);
  together("g2", g2.has_value(), "w2", w2.has_value());
  check.activation("g2", g2, {S, B, H, W, Co});
  check.parameter("w2", w2, {S, Co, Ci, 3, 3});
  Tensor gx = fresh({S, B, H, W, Ci}, g.scalar_type());
  if (g.scalar_type() == at::kFloat) {
    const auto w_ = param<float>(w), w2_ = param<float>(w2);
    mct::conv3x3_input_grad({S, B, H, W, Ci, Co}, data<float>(g), w_.data, w_.stride_s, data<float>(g2), w2_.data,
                            w2_.stride_s, out<float>(gx));
    return gx;
  }
  for (int64_t s = 0; s < S; ++s) {
    Tensor one = at::conv_transpose2d(nchw(g, s), w.select(0, s), {}, {1, 1}, {1, 1});
    if (g2) one = one + at::conv_transpose2d(nchw(*g2, s), w2->select(0, s), {}, {1, 1}, {1, 1});
    gx.select(0, s).copy_(one.permute({0, 2, 3, 1}));
  }
  return gx;
}

Tensor weight_grad_float64(const Tensor& g, const Tensor& x, int64_t s, const Tensor& like) {
  return std::get<1>(at::convolution_backward(nchw(g, s), nchw(x, s), like, std::nullopt, {1, 1}, {1, 1}, {1, 1}, false,
                                              {0, 0}, 1, {false, true, false}));
}

std::tuple<Tensor, Tensor> conv3x3_weight_grad(const Tensor& g, const Tensor& x, Maybe g2, Maybe x2) {
  const Checks check("g", g);
  check.activation("g", g, {kAny, kAny, kAny, kAny, kAny});
  const int64_t S = g.size(0), B = g.size(1), H = g.size(2), W = g.size(3), Co = g.size(4);
  check.activation("x", x, {S, B, H, W, kAny});
  const int64_t Ci = x.size(4);
  together("g2", g2.has_value(), "x2", x2.has_value());
  check.activation("g2", g2, {S, B, H, W, Co});
  check.activation("x2", x2, {S, B, H, W, Ci});
  Tensor gw = fresh({S, Co, Ci, 3, 3}, g.scalar_type()), gb = fresh({S, Co}, g.scalar_type());
  if (g.scalar_type() == at::kFloat) {
    mct::conv3x3_weight_grad({S, B, H, W, Ci, Co}, data<float>(g), data<float>(x), data<float>(g2), data<float>(x2),
                             out<float>(gw), Co * Ci * 9, out<float>(gb), Co);
    return {gw, gb};
  }
  const Tensor like = at::empty({Co, Ci, 3, 3}, g.options());
  for (int64_t s = 0; s < S; ++s) {
    Tensor one = weight_grad_float64(g, x, s, like);
    if (g2) one = one + weight_grad_float64(*g2, *x2, s, like);
    gw.select(0, s).copy_(one);
    gb.select(0, s).copy_(g.select(0, s).sum(at::IntArrayRef{0, 1, 2}));
  }
  return {gw, gb};
}

// --------------------------------------------------------------------------------------------------------- blocks

std::tuple<Tensor, Tensor, Tensor> block_forward(const Tensor& z, Maybe gamma, Maybe beta, double eps, bool pool) {
  const Checks check("z", z);
  const BlockArguments a = check_block(check, z, gamma, beta, pool);
  const auto& s = a.shape;
  Tensor p = fresh(a.pooled, a.dtype), mean = fresh({s.S, s.B, s.C}, a.dtype), rstd = fresh({s.S, s.B, s.C}, a.dtype);
  by_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    mct::block_forward<T>(s, data<T>(z), param<T>(gamma), param<T>(beta), eps, out<T>(p), out<T>(mean), out<T>(rstd));
  });
  return {p, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> block_backward(const Tensor& gp, const Tensor& z, const Tensor& mean,
                                                  const Tensor& rstd, Maybe gamma, Maybe beta, bool pool) {
  const Checks check("z", z);
  const BlockArguments a = check_block(check, z, gamma, beta, pool);
  const auto& s = a.shape;
  check_output(check, "gp", gp, a);
  check.activation("mean", mean, {s.S, s.B, s.C});
  check.activation("rstd", rstd, {s.S, s.B, s.C});
  Tensor gz = fresh(z.sizes(), a.dtype), ggamma = fresh({s.S, s.C}, a.dtype), gbeta = fresh({s.S, s.C}, a.dtype);
  by_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    mct::block_backward<T>(s, data<T>(gp), data<T>(z), data<T>(mean), data<T>(rstd), param<T>(gamma), param<T>(beta),
                           out<T>(gz), out<T>(ggamma), out<T>(gbeta));
  });
  return {gz, ggamma, gbeta};
}

std::tuple<Tensor, Tensor, Tensor> block_tangent(const Tensor& z, const Tensor& zdot, const Tensor& mean,
                                                 const Tensor& rstd, Maybe gamma, Maybe beta, Maybe gammadot,
                                                 Maybe betadot, bool pool) {
  const Checks check("z", z);
  const BlockArguments a = check_block(check, z, gamma, beta, pool);
  check_tangent(check, a, zdot, mean, rstd, gamma, gammadot, betadot);
  const auto& s = a.shape;
  Tensor pdot = fresh(a.pooled, a.dtype), m1 = fresh({s.S, s.B, s.C}, a.dtype), m2 = fresh({s.S, s.B, s.C}, a.dtype);
  by_dtype(a.dtype, [&](auto zero) {
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
  const Checks check("z", z);
  const BlockArguments a = check_block(check, z, gamma, beta, pool);
  check_tangent(check, a, zdot, mean, rstd, gamma, gammadot, betadot);
  check_tangent_backward(check, a, gp, gpdot, mean_zdot, mean_xhat_zdot);
  const auto& s = a.shape;
  Tensor gz = fresh(z.sizes(), a.dtype), gzdot = fresh(z.sizes(), a.dtype);
  Tensor ggammadot = fresh({s.S, s.C}, a.dtype), gbetadot = fresh({s.S, s.C}, a.dtype);
  by_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    mct::block_tangent_backward<T>(s, data<T>(gp), data<T>(gpdot), data<T>(z), data<T>(zdot), data<T>(mean),
                                   data<T>(rstd), data<T>(mean_zdot), data<T>(mean_xhat_zdot), param<T>(gamma),
                                   param<T>(beta), param<T>(gammadot), out<T>(gz), out<T>(gzdot), out<T>(ggammadot),
                                   out<T>(gbetadot));
  });
  return {gz, gzdot, ggammadot, gbetadot};
}

// --------------------------------------------------------------------------------------------------- linear layer

mct::LinearShape check_linear(const Checks& check, const Tensor& h, const Tensor& w, const Tensor& b, const Tensor& y) {
  check.activation("h", h, {kAny, kAny, kAny});
  const int64_t S = h.size(0), B = h.size(1), F = h.size(2);
  check.parameter("w", w, {S, kAny, F});
  const int64_t K = w.size(1);
  check.parameter("b", b, {S, K});
  check.activation("y", y, {S, B, K});
  return {S, B, F, K};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_ce(const Tensor& h, const Tensor& w, const Tensor& b,
                                                     const Tensor& y) {
  const Checks check("h", h);
  const mct::LinearShape s = check_linear(check, h, w, b, y);
  Tensor loss = fresh({s.S}, check.dtype()), gh = fresh(h.sizes(), check.dtype());
  Tensor gw = fresh(w.sizes(), check.dtype()), gb = fresh(b.sizes(), check.dtype());
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::linear_ce<T>(s, data<T>(h), param<T>(w), param<T>(b), data<T>(y), out<T>(loss), out<T>(gh), out<T>(gw),
                      out<T>(gb));
  });
  return {loss, gh, gw, gb};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_ce_tangent(const Tensor& h, const Tensor& hdot,
                                                                             const Tensor& w, const Tensor& wdot,
                                                                             const Tensor& b, const Tensor& bdot,
                                                                             const Tensor& y) {
  const Checks check("h", h);
  const mct::LinearShape s = check_linear(check, h, w, b, y);
  check.activation("hdot", hdot, {s.S, s.B, s.F});
  check.parameter("wdot", wdot, {s.S, s.K, s.F});
  check.parameter("bdot", bdot, {s.S, s.K});
  Tensor loss_dot = fresh({s.S}, check.dtype()), gh = fresh(h.sizes(), check.dtype());
  Tensor ghdot = fresh(h.sizes(), check.dtype()), gwdot = fresh(w.sizes(), check.dtype());
  Tensor gbdot = fresh(b.sizes(), check.dtype()), gydot = fresh(y.sizes(), check.dtype());
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::linear_ce_tangent<T>(s, data<T>(h), data<T>(hdot), param<T>(w), param<T>(wdot), param<T>(b), param<T>(bdot),
                              data<T>(y), out<T>(loss_dot), out<T>(gh), out<T>(ghdot), out<T>(gwdot), out<T>(gbdot),
                              out<T>(gydot));
  });
  return {loss_dot, gh, ghdot, gwdot, gbdot, gydot};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_bce(const Tensor& h, const Tensor& w, const Tensor& b, const Tensor& y,
                                                      const Tensor& pos, const Tensor& neg) {
  const Checks check("h", h);
  const mct::LinearShape s = check_linear(check, h, w, b, y);
  check.activation("pos", pos, {s.K});
  check.activation("neg", neg, {s.K});
  Tensor loss = fresh({s.S}, check.dtype()), gh = fresh(h.sizes(), check.dtype());
  Tensor gw = fresh(w.sizes(), check.dtype()), gb = fresh(b.sizes(), check.dtype());
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::linear_bce<T>(s, data<T>(h), param<T>(w), param<T>(b), data<T>(y), data<T>(pos), data<T>(neg), out<T>(loss),
                       out<T>(gh), out<T>(gw), out<T>(gb));
  });
  return {loss, gh, gw, gb};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_bce_tangent(
    const Tensor& h, const Tensor& hdot, const Tensor& w, const Tensor& wdot, const Tensor& b, const Tensor& bdot,
    const Tensor& y, const Tensor& pos, const Tensor& neg) {
  const Checks check("h", h);
  const mct::LinearShape s = check_linear(check, h, w, b, y);
  check.activation("hdot", hdot, {s.S, s.B, s.F});
  check.parameter("wdot", wdot, {s.S, s.K, s.F});
  check.parameter("bdot", bdot, {s.S, s.K});
  check.activation("pos", pos, {s.K});
  check.activation("neg", neg, {s.K});
  Tensor loss_dot = fresh({s.S}, check.dtype()), gh = fresh(h.sizes(), check.dtype());
  Tensor ghdot = fresh(h.sizes(), check.dtype()), gwdot = fresh(w.sizes(), check.dtype());
  Tensor gbdot = fresh(b.sizes(), check.dtype()), gydot = fresh(y.sizes(), check.dtype());
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::linear_bce_tangent<T>(s, data<T>(h), data<T>(hdot), param<T>(w), param<T>(wdot), param<T>(b), param<T>(bdot),
                               data<T>(y), data<T>(pos), data<T>(neg), out<T>(loss_dot), out<T>(gh), out<T>(ghdot),
                               out<T>(gwdot), out<T>(gbdot), out<T>(gydot));
  });
  return {loss_dot, gh, ghdot, gwdot, gbdot, gydot};
}

// ------------------------------------------------------------------------------------------------ flat parameters

// Returns L.
int64_t check_offsets(const Checks& check, const Tensor& offsets, int64_t P) {
  const int64_t L = check_offsets_shape(check, offsets);
  const int64_t* o = data<int64_t>(offsets);
  bool rising = o[0] == 0 && o[L] == P;
  for (int64_t i = 0; i < L; ++i) rising = rising && o[i] <= o[i + 1];
  TORCH_CHECK_VALUE(rising, "offsets: must rise from 0 to ", P, ", the number of parameters");
  return L;
}

std::tuple<Tensor, Tensor> matching_loss(const Tensor& theta, const Tensor& origin, const Tensor& end,
                                         const Tensor& frac, const Tensor& offsets, const Tensor& denom) {
  const Checks check("theta", theta);
  check.parameter("theta", theta, {kAny, kAny});
  const int64_t S = theta.size(0), P = theta.size(1);
  check.parameter("origin", origin, {S, P});
  check.parameter("end", end, {S, P});
  const int64_t L = check_offsets(check, offsets, P);
  check.parameter("frac", frac, {S, L});
  check.activation("denom", denom, {S});
  Tensor loss = fresh({S}, check.dtype()), grad = fresh({S, P}, check.dtype());
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::matching_loss<T>(S, P, L, param<T>(theta), param<T>(origin), param<T>(end), param<T>(frac),
                          data<int64_t>(offsets), data<T>(denom), out<T>(loss), out<T>(grad));
  });
  return {loss, grad};
}

void sgd_step_(const Tensor& params, const Tensor& grad, Maybe buffer, const Tensor& lr, double momentum,
               double weight_decay) {
  const Checks check("params", params);
  check.parameter("params", params, {kAny, kAny});
  const int64_t S = params.size(0), P = params.size(1);
  check.parameter("grad", grad, {S, P});
  check.parameter("momentum_buffer", buffer, {S, P});
  check.activation("lr", lr, {S});
  TORCH_CHECK_VALUE(buffer || momentum == 0, "momentum_buffer: needed where momentum is not 0");
  TORCH_CHECK_VALUE(S == 1 || params.stride(0) >= P, "params: the students overlap; call .clone()");
  TORCH_CHECK_VALUE(S == 1 || !buffer || buffer->stride(0) >= P, "momentum_buffer: the students overlap; call .clone()");
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::sgd_step<T>(S, P, out<T>(params), params.stride(0), param<T>(grad), buffer ? out<T>(*buffer) : nullptr,
                     buffer ? buffer->stride(0) : 0, data<T>(lr), momentum, weight_decay);
  });
}

Tensor arc_length(const Tensor& previous, const Tensor& current, const Tensor& offsets) {
  const Checks check("previous", previous);
  check.parameter("previous", previous, {kAny, kAny});
  const int64_t S = previous.size(0), P = previous.size(1);
  check.parameter("current", current, {S, P});
  const int64_t L = check_offsets(check, offsets, P);
  Tensor length = fresh({S, L}, at::kDouble);
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::arc_length<T>(S, P, L, param<T>(previous), param<T>(current), data<int64_t>(offsets), out<double>(length));
  });
  return length;
}

// --------------------------------------------------------------------------------------------------- augmentation

Tensor augment(const char* name, const Tensor& x, const Tensor& kinds, const Tensor& params, bool transpose) {
  const Checks check(name, x);
  check.activation(name, x, {kAny, kAny, kAny, kAny, kAny});
  const int64_t S = x.size(0), B = x.size(1), C = x.size(2), H = x.size(3), W = x.size(4);
  TORCH_CHECK_VALUE(H >= 2 && W >= 2, name, ": images of ", H, "x", W, " are too small to augment; use 2x2 or larger");
  check.shape_and_dtype("kinds", kinds, {S}, at::kLong);
  check.shape_and_dtype("params", params, {S, B, 4}, at::kFloat);
  TORCH_CHECK_VALUE(kinds.is_contiguous(), "kinds: must be contiguous; call .contiguous()");
  TORCH_CHECK_VALUE(params.is_contiguous(), "params: must be contiguous; call .contiguous()");
  for (int64_t s = 0; s < S; ++s) {
    const int64_t kind = data<int64_t>(kinds)[s];
    TORCH_CHECK_VALUE(kind >= 0 && kind <= 6, "kinds: ", kind, " is no augmentation; use 0 to 6");
  }
  Tensor y = fresh(x.sizes(), check.dtype());
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    mct::dsa<T>({S, B, C, H, W}, data<T>(x), data<int64_t>(kinds), data<float>(params), transpose, out<T>(y));
  });
  return y;
}

Tensor dsa(const Tensor& x, const Tensor& kinds, const Tensor& params) { return augment("x", x, kinds, params, false); }

Tensor dsa_transpose(const Tensor& g, const Tensor& kinds, const Tensor& params) {
  return augment("g", g, kinds, params, true);
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

}  // namespace

TORCH_LIBRARY(mct_fast, m) {
  m.def("conv3x3(Tensor x, Tensor w, Tensor? bias=None, Tensor? x2=None, Tensor? w2=None) -> Tensor");
  m.def("conv3x3_input_grad(Tensor g, Tensor w, Tensor? g2=None, Tensor? w2=None) -> Tensor");
  m.def("conv3x3_weight_grad(Tensor g, Tensor x, Tensor? g2=None, Tensor? x2=None) -> (Tensor, Tensor)");
  m.def("block_forward(Tensor z, Tensor? gamma, Tensor? beta, float eps, bool pool) -> (Tensor, Tensor, Tensor)");
  m.def(
      "block_backward(Tensor gp, Tensor z, Tensor mean, Tensor rstd, Tensor? gamma, Tensor? beta, bool pool)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "block_tangent(Tensor z, Tensor zdot, Tensor mean, Tensor rstd, Tensor? gamma, Tensor? beta,"
      " Tensor? gammadot, Tensor? betadot, bool pool) -> (Tensor, Tensor, Tensor)");
  m.def(
      "block_tangent_backward(Tensor gp, Tensor gpdot, Tensor z, Tensor zdot, Tensor mean, Tensor rstd,"
      " Tensor mean_zdot, Tensor mean_xhat_zdot, Tensor? gamma, Tensor? beta, Tensor? gammadot, Tensor? betadot,"
      " bool pool) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("linear_ce(Tensor h, Tensor w, Tensor b, Tensor y) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_ce_tangent(Tensor h, Tensor hdot, Tensor w, Tensor wdot, Tensor b, Tensor bdot, Tensor y)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_bce(Tensor h, Tensor w, Tensor b, Tensor y, Tensor pos, Tensor neg)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_bce_tangent(Tensor h, Tensor hdot, Tensor w, Tensor wdot, Tensor b, Tensor bdot, Tensor y, Tensor pos,"
      " Tensor neg) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "matching_loss(Tensor theta, Tensor origin, Tensor end, Tensor frac, Tensor offsets, Tensor denom)"
      " -> (Tensor, Tensor)");
  m.def(
      "sgd_step_(Tensor(a!) params, Tensor grad, Tensor(b!)? momentum_buffer, Tensor lr, float momentum,"
      " float weight_decay) -> ()");
  m.def("arc_length(Tensor previous, Tensor current, Tensor offsets) -> Tensor");
  m.def("dsa(Tensor x, Tensor kinds, Tensor params) -> Tensor");
  m.def("dsa_transpose(Tensor g, Tensor kinds, Tensor params) -> Tensor");
  m.def("_instruction_set(int wanted) -> int", &instruction_set);
}

TORCH_LIBRARY_IMPL(mct_fast, CPU, m) {
  m.impl("conv3x3", &conv3x3);
  m.impl("conv3x3_input_grad", &conv3x3_input_grad);
  m.impl("conv3x3_weight_grad", &conv3x3_weight_grad);
  m.impl("block_forward", &block_forward);
  m.impl("block_backward", &block_backward);
  m.impl("block_tangent", &block_tangent);
  m.impl("block_tangent_backward", &block_tangent_backward);
  m.impl("linear_ce", &linear_ce);
  m.impl("linear_ce_tangent", &linear_ce_tangent);
  m.impl("linear_bce", &linear_bce);
  m.impl("linear_bce_tangent", &linear_bce_tangent);
  m.impl("matching_loss", &matching_loss);
  m.impl("sgd_step_", &sgd_step_);
  m.impl("arc_length", &arc_length);
  m.impl("dsa", &dsa);
  m.impl("dsa_transpose", &dsa_transpose);
}

// An empty Python module: importing it loads the library, whose initialisers register the operators.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
