// The CUDA kernels' entry into PyTorch's dispatcher: arguments are checked here, outputs are allocated here, on the device and
// stream that the caller has. An extension of its own, beside the CPU's: where it does not load, that one still does.

#include <Python.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cuda/kernels.h"

namespace {

using namespace mct::op;

mct::cuda::Stream stream_of(const Tensor& t) { return c10::cuda::getCurrentCUDAStream(t.device().index()).stream(); }

void done(const char* op, const char* error) { TORCH_CHECK(error == nullptr, "mct_fast::", op, ": ", error); }

Tensor fresh(at::IntArrayRef sizes, const Tensor& like) { return at::empty(sizes, like.options()); }

std::tuple<Tensor, Tensor, Tensor> block_forward(const Tensor& z, Maybe gamma, Maybe beta, double eps, bool pool) {
  const Checks check("z", z);
  const BlockArguments a = check_block(check, z, gamma, beta, pool);
  const auto& s = a.shape;
  const c10::cuda::CUDAGuard guard(z.device());
  Tensor p = fresh(a.pooled, z), mean = fresh({s.S, s.B, s.C}, z), rstd = fresh({s.S, s.B, s.C}, z);
  by_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    done("block_forward", mct::cuda::block_forward<T>(s, data<T>(z), param<T>(gamma), param<T>(beta), eps, out<T>(p),
                                                      out<T>(mean), out<T>(rstd), stream_of(z)));
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
  const c10::cuda::CUDAGuard guard(z.device());
  Tensor gz = fresh(z.sizes(), z), ggamma = fresh({s.S, s.C}, z), gbeta = fresh({s.S, s.C}, z);
  const Tensor parts = fresh({2, s.S, s.B, s.C}, z);
  by_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    done("block_backward",
         mct::cuda::block_backward<T>(s, data<T>(gp), data<T>(z), data<T>(mean), data<T>(rstd), param<T>(gamma),
                                      param<T>(beta), out<T>(gz), out<T>(ggamma), out<T>(gbeta), out<T>(parts),
                                      stream_of(z)));
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
  const c10::cuda::CUDAGuard guard(z.device());
  Tensor pdot = fresh(a.pooled, z), m1 = fresh({s.S, s.B, s.C}, z), m2 = fresh({s.S, s.B, s.C}, z);
  by_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    done("block_tangent",
         mct::cuda::block_tangent<T>(s, data<T>(z), data<T>(zdot), data<T>(mean), data<T>(rstd), param<T>(gamma),
                                     param<T>(beta), param<T>(gammadot), param<T>(betadot), out<T>(pdot), out<T>(m1),
                                     out<T>(m2), stream_of(z)));
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
  const c10::cuda::CUDAGuard guard(z.device());
  Tensor gz = fresh(z.sizes(), z), gzdot = fresh(z.sizes(), z);
  Tensor ggammadot = fresh({s.S, s.C}, z), gbetadot = fresh({s.S, s.C}, z);
  const Tensor parts = fresh({2, s.S, s.B, s.C}, z);
  by_dtype(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    done("block_tangent_backward",
         mct::cuda::block_tangent_backward<T>(
             s, data<T>(gp), data<T>(gpdot), data<T>(z), data<T>(zdot), data<T>(mean), data<T>(rstd), data<T>(mean_zdot),
             data<T>(mean_xhat_zdot), param<T>(gamma), param<T>(beta), param<T>(gammadot), out<T>(gz), out<T>(gzdot),
             out<T>(ggammadot), out<T>(gbetadot), out<T>(parts), stream_of(z)));
  });
  return {gz, gzdot, ggammadot, gbetadot};
}

// The offsets' numbers are trusted: to look at them would be to wait for the device.
std::tuple<Tensor, Tensor> matching_loss(const Tensor& theta, const Tensor& origin, const Tensor& end,
                                         const Tensor& frac, const Tensor& offsets, const Tensor& denom) {
  const Checks check("theta", theta);
  check.parameter("theta", theta, {kAny, kAny});
  const int64_t S = theta.size(0), P = theta.size(1);
  check.parameter("origin", origin, {S, P});
  check.parameter("end", end, {S, P});
  check.parameter("frac", frac, {S, check_offsets_shape(check, offsets)});
  check.activation("denom", denom, {S});
  const c10::cuda::CUDAGuard guard(theta.device());
  Tensor loss = fresh({S}, theta), grad = fresh({S, P}, theta);
  const Tensor parts = at::empty({S, mct::cuda::matching_parts(P)}, theta.options().dtype(at::kDouble));
  by_dtype(check.dtype(), [&](auto zero) {
    using T = decltype(zero);
    done("matching_loss",
         mct::cuda::matching_loss<T>(S, P, param<T>(theta), param<T>(origin), param<T>(end), param<T>(frac),
                                     data<int64_t>(offsets), data<T>(denom), out<T>(loss), out<T>(grad),
                                     out<double>(parts), stream_of(theta)));
  });
  return {loss, grad};
}

}  // namespace

TORCH_LIBRARY_IMPL(mct_fast, CUDA, m) {
  m.impl("block_forward", &block_forward);
  m.impl("block_backward", &block_backward);
  m.impl("block_tangent", &block_tangent);
  m.impl("block_tangent_backward", &block_tangent_backward);
  m.impl("matching_loss", &matching_loss);
}

// An empty Python module: importing it loads the library, whose initialisers register the kernels.
extern "C" PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
