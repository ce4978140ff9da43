// The CPU kernels' entry into PyTorch's dispatcher: outputs are allocated here. Nothing here needs PyTorch to compile.
// Schemas, fake kernels and derivatives are Python's (mct_fast/ops); signature.h tells how arguments are checked.

#define Py_LIMITED_API 0x030A0000  // one file for every Python since 3.10
#include <Python.h>

#include <exception>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/conv3x3.h"
#include "cpu/first_block.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/simd.h"
#include "signature.h"
#include "tensor.h"
#include "torch_c.h"

namespace torch_c = mct::torch_c;

namespace {

using namespace mct::op;

// ------------------------------------------------------------------------------------------------------- outputs

// (S,), and a tensor of another's shape.
Tensor losses(const Tensor& h) { return fresh({h.size(0)}, h.dtype()); }
Tensor like(const Tensor& t) { return fresh(t.sizes(), t.dim(), t.dtype()); }

// --------------------------------------------------------------------------------------------------- convolutions

mct::ConvShape conv_shape(const Tensor& x, int64_t Ci, int64_t Co) {
  return {x.size(0), x.size(1), x.size(2), x.size(3), Ci, Co};
}

Tensor conv3x3(const Tensor& x, const Tensor& w, Maybe bias, Maybe x2, Maybe w2) {
  const mct::ConvShape s = conv_shape(x, w.size(2), w.size(1));
  Tensor z = fresh({s.S, s.B, s.H, s.W, s.Co}, x.dtype());
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
  Tensor gx = fresh({s.S, s.B, s.H, s.W, s.Ci}, g.dtype());
  by_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    const auto w_ = param<T>(w), w2_ = param<T>(w2);
    mct::conv3x3_input_grad(s, data<T>(g), w_.data, w_.stride_s, data<T>(g2), w2_.data, w2_.stride_s, out<T>(gx));
  });
  return gx;
}

std::tuple<Tensor, Tensor> conv3x3_weight_grad(const Tensor& g, const Tensor& x, Maybe g2, Maybe x2) {
  const mct::ConvShape s = conv_shape(g, x.size(4), g.size(4));
  Tensor gw = fresh({s.S, s.Co, s.Ci, 3, 3}, g.dtype()), gb = fresh({s.S, s.Co}, g.dtype());
  by_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    mct::conv3x3_weight_grad(s, data<T>(g), data<T>(x), data<T>(g2), data<T>(x2), out<T>(gw), s.Co * s.Ci * 9, out<T>(gb),
                             s.Co);
  });
  return {std::move(gw), std::move(gb)};
}

// --------------------------------------------------------------------------------------------------------- blocks

mct::BlockShape block_shape(const Tensor& z, bool pool) {
  require(!pool || (z.size(2) > 1 && z.size(3) > 1));
  return {z.size(0), z.size(1), z.size(2), z.size(3), z.size(4), pool};
}

// Empty (S, B, C), (S, C), and the output of a block.
Tensor statistic(const mct::BlockShape& s, const Tensor& z) { return fresh({s.S, s.B, s.C}, z.dtype()); }
Tensor channels(const mct::BlockShape& s, const Tensor& z) { return fresh({s.S, s.C}, z.dtype()); }
Tensor pooled(const mct::BlockShape& s, const Tensor& z) {
  const int64_t by = s.pool ? 2 : 1;
  return fresh({s.S, s.B, s.H / by, s.W / by, s.C}, z.dtype());
}

std::tuple<Tensor, Tensor, Tensor> block_forward(const Tensor& z, Maybe gamma, Maybe beta, double eps, bool pool) {
  const auto s = block_shape(z, pool);
  Tensor p = pooled(s, z), mean = statistic(s, z), rstd = statistic(s, z);
  by_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    mct::block_forward<T>(s, data<T>(z), param<T>(gamma), param<T>(beta), eps, out<T>(p), out<T>(mean), out<T>(rstd));
  });
  return {std::move(p), std::move(mean), std::move(rstd)};
}

std::tuple<Tensor, Tensor, Tensor> block_backward(const Tensor& gp, const Tensor& z, const Tensor& mean,
                                                  const Tensor& rstd, Maybe gamma, Maybe beta, bool pool) {
  const auto s = block_shape(z, pool);
  Tensor gz = like(z), ggamma = channels(s, z), gbeta = channels(s, z);
  by_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    mct::block_backward<T>(s, data<T>(gp), data<T>(z), data<T>(mean), data<T>(rstd), param<T>(gamma), param<T>(beta),
                           out<T>(gz), out<T>(ggamma), out<T>(gbeta));
  });
  return {std::move(gz), std::move(ggamma), std::move(gbeta)};
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
  return {std::move(pdot), std::move(m1), std::move(m2)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> block_tangent_backward(
    const Tensor& gp, const Tensor& gpdot, const Tensor& z, const Tensor& zdot, const Tensor& mean, const Tensor& rstd,
    const Tensor& mean_zdot, const Tensor& mean_xhat_zdot, Maybe gamma, Maybe beta, Maybe gammadot, Maybe betadot,
    bool pool) {
  const auto s = block_shape(z, pool);
  Tensor gz = like(z), gzdot = like(z);
  Tensor ggammadot = channels(s, z), gbetadot = channels(s, z);
  by_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    mct::block_tangent_backward<T>(s, data<T>(gp), data<T>(gpdot), data<T>(z), data<T>(zdot), data<T>(mean),
                                   data<T>(rstd), data<T>(mean_zdot), data<T>(mean_xhat_zdot), param<T>(gamma),
                                   param<T>(beta), param<T>(gammadot), out<T>(gz), out<T>(gzdot), out<T>(ggammadot),
                                   out<T>(gbetadot));
  });
  return {std::move(gz), std::move(gzdot), std::move(ggammadot), std::move(gbetadot)};
}

// ----------------------------------------------------------------------------------------------------- first block

mct::FirstShape first_shape(const Tensor& x, const Tensor& w, bool pool) {
  require(!pool || (x.size(2) > 1 && x.size(3) > 1));
  return {x.size(0), x.size(1), x.size(2), x.size(3), x.size(4), w.size(1), pool};
}

template <class T>
mct::FirstLayer<T> layer(const Tensor& w, const Tensor& bias, Maybe gamma, Maybe beta) {
  return {param<T>(w), param<T>(bias), param<T>(gamma), param<T>(beta)};
}

// Empty outputs: a pooled plane, a statistic of each plane, the parameters' gradients.
Tensor pooled(const mct::FirstShape& s, const Tensor& x) {
  const int64_t by = s.pool ? 2 : 1;
  return fresh({s.S, s.B, s.H / by, s.W / by, s.Co}, x.dtype());
}
Tensor statistic(const mct::FirstShape& s, const Tensor& x) { return fresh({s.S, s.B, s.Co}, x.dtype()); }
Tensor weights(const mct::FirstShape& s, const Tensor& x) { return fresh({s.S, s.Co, s.Ci, 3, 3}, x.dtype()); }
Tensor channels(const mct::FirstShape& s, const Tensor& x) { return fresh({s.S, s.Co}, x.dtype()); }

std::tuple<Tensor, Tensor, Tensor> first_block(const Tensor& x, const Tensor& w, const Tensor& bias, Maybe gamma, Maybe beta,
                                               double eps, bool pool) {
  const auto s = first_shape(x, w, pool);
  Tensor p = pooled(s, x), mean = statistic(s, x), rstd = statistic(s, x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    mct::first_block<T>(s, data<T>(x), layer<T>(w, bias, gamma, beta), eps, out<T>(p), out<T>(mean), out<T>(rstd));
  });
  return {std::move(p), std::move(mean), std::move(rstd)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> first_block_backward(const Tensor& gp, const Tensor& x, const Tensor& mean,
                                                                const Tensor& rstd, const Tensor& w, const Tensor& bias,
                                                                Maybe gamma, Maybe beta, bool pool) {
  const auto s = first_shape(x, w, pool);
  Tensor gw = weights(s, x), gb = channels(s, x), ggamma = channels(s, x), gbeta = channels(s, x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    mct::first_block_backward<T>(s, data<T>(gp), data<T>(x), layer<T>(w, bias, gamma, beta), data<T>(mean),
                                 data<T>(rstd), out<T>(gw), out<T>(gb), out<T>(ggamma), out<T>(gbeta));
  });
  return {std::move(gw), std::move(gb), std::move(ggamma), std::move(gbeta)};
}

std::tuple<Tensor, Tensor, Tensor> first_block_tangent(const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                                       const Tensor& w, const Tensor& wdot, const Tensor& bias, const Tensor& biasdot,
                                                       Maybe gamma, Maybe beta, Maybe gammadot, Maybe betadot,
                                                       bool pool) {
  const auto s = first_shape(x, w, pool);
  Tensor pdot = pooled(s, x), m1 = statistic(s, x), m2 = statistic(s, x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    mct::first_block_tangent<T>(s, data<T>(x), layer<T>(w, bias, gamma, beta), layer<T>(wdot, biasdot, gammadot, betadot),
                                data<T>(mean), data<T>(rstd), out<T>(pdot), out<T>(m1), out<T>(m2));
  });
  return {std::move(pdot), std::move(m1), std::move(m2)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> first_block_tangent_backward(
    const Tensor& gp, const Tensor& gpdot, const Tensor& x, const Tensor& mean, const Tensor& rstd,
    const Tensor& mean_zdot, const Tensor& mean_xhat_zdot, const Tensor& w, const Tensor& wdot, const Tensor& bias, const Tensor& biasdot,
    Maybe gamma, Maybe beta, Maybe gammadot, Maybe betadot, bool pool) {
  const auto s = first_shape(x, w, pool);
  Tensor gx = like(x), gw = weights(s, x), gb = channels(s, x), ggamma = channels(s, x), gbeta = channels(s, x);
  by_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    mct::first_block_tangent_backward<T>(s, data<T>(gp), data<T>(gpdot), data<T>(x), layer<T>(w, bias, gamma, beta),
                                         layer<T>(wdot, biasdot, gammadot, betadot), data<T>(mean), data<T>(rstd),
                                         data<T>(mean_zdot), data<T>(mean_xhat_zdot), out<T>(gx), out<T>(gw), out<T>(gb),
                                         out<T>(ggamma), out<T>(gbeta));
  });
  return {std::move(gx), std::move(gw), std::move(gb), std::move(ggamma), std::move(gbeta)};
}

// --------------------------------------------------------------------------------------------------- linear layer

mct::LinearShape linear_shape(const Tensor& h, const Tensor& w) { return {h.size(0), h.size(1), h.size(2), w.size(1)}; }

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_ce(const Tensor& h, const Tensor& w, const Tensor& b,
                                                     const Tensor& y) {
  Tensor loss = losses(h), gh = like(h), gw = like(w), gb = like(b);
  by_dtype(h, [&](auto zero) {
    using T = decltype(zero);
    mct::linear_ce<T>(linear_shape(h, w), data<T>(h), param<T>(w), param<T>(b), data<T>(y), out<T>(loss), out<T>(gh),
                      out<T>(gw), out<T>(gb));
  });
  return {std::move(loss), std::move(gh), std::move(gw), std::move(gb)};
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
  return {std::move(loss_dot), std::move(gh), std::move(ghdot), std::move(gwdot), std::move(gbdot), std::move(gydot)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_bce(const Tensor& h, const Tensor& w, const Tensor& b, const Tensor& y,
                                                      const Tensor& pos, const Tensor& neg) {
  Tensor loss = losses(h), gh = like(h), gw = like(w), gb = like(b);
  by_dtype(h, [&](auto zero) {
    using T = decltype(zero);
    mct::linear_bce<T>(linear_shape(h, w), data<T>(h), param<T>(w), param<T>(b), data<T>(y), data<T>(pos), data<T>(neg),
                       out<T>(loss), out<T>(gh), out<T>(gw), out<T>(gb));
  });
  return {std::move(loss), std::move(gh), std::move(gw), std::move(gb)};
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
  return {std::move(loss_dot), std::move(gh), std::move(ghdot), std::move(gwdot), std::move(gbdot), std::move(gydot)};
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
  return {std::move(loss), std::move(grad)};
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
  Tensor length = fresh({S, L}, Dtype::float64);
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

// --------------------------------------------------------------------------------------------------- registration

void register_kernels() {
  static torch_c::LibraryHandle library = nullptr;  // kept for as long as the process lives
  if (library != nullptr) return;
  MCT_TORCH(aoti_torch_library_init_impl, "mct_fast", "CPU", __FILE__, __LINE__, &library);
  checked<&conv3x3>(library, "conv3x3");
  checked<&conv3x3_input_grad>(library, "conv3x3_input_grad");
  checked<&conv3x3_weight_grad>(library, "conv3x3_weight_grad");
  checked<&block_forward>(library, "block_forward");
  checked<&block_backward>(library, "block_backward");
  checked<&block_tangent>(library, "block_tangent");
  checked<&block_tangent_backward>(library, "block_tangent_backward");
  checked<&first_block>(library, "first_block");
  checked<&first_block_backward>(library, "first_block_backward");
  checked<&first_block_tangent>(library, "first_block_tangent");
  checked<&first_block_tangent_backward>(library, "first_block_tangent_backward");
  checked<&linear_ce>(library, "linear_ce");
  checked<&linear_ce_tangent>(library, "linear_ce_tangent");
  checked<&linear_bce>(library, "linear_bce");
  checked<&linear_bce_tangent>(library, "linear_bce_tangent");
  checked<&matching_loss>(library, "matching_loss");
  checked<&sgd_step_>(library, "sgd_step_");
  checked<&arc_length>(library, "arc_length");
  checked<&augment<false>>(library, "dsa");
  checked<&augment<true>>(library, "dsa_transpose");
}

// ------------------------------------------------------------------------------------------------ the Python module

// declare(op: str, tensors: list[str]) -> None
PyObject* declare(PyObject*, PyObject* args) {
  const char* op = nullptr;
  PyObject* list = nullptr;
  if (!PyArg_ParseTuple(args, "sO!", &op, &PyList_Type, &list)) return nullptr;
  std::vector<std::string> lines;
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
    PyObject* bytes = PyUnicode_AsUTF8String(PyList_GetItem(list, i));
    if (bytes == nullptr) return nullptr;
    lines.emplace_back(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
  }
  try {
    signature_of(op).declare(lines);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

// instruction_set(wanted: int) -> int: 0 portable, 1 AVX2, 2 AVX-512. A number chooses one; -1 only asks.
PyObject* instruction_set(PyObject*, PyObject* args) {
  int wanted = -1;
  if (!PyArg_ParseTuple(args, "i", &wanted)) return nullptr;
  if (wanted >= 0 && (wanted > 2 || !mct::set_isa(static_cast<mct::Isa>(wanted)))) {
    return PyErr_Format(PyExc_ValueError, "wanted: instruction set %d is not available here", wanted);
  }
  return PyLong_FromLong(static_cast<long>(mct::active_isa()));
}

PyMethodDef methods[] = {
    {"declare", declare, METH_VARARGS, "Tell the signature of an operator, a line a tensor (mct_fast/ops/signature.py)."},
    {"instruction_set", instruction_set, METH_VARARGS, "For tests: the vector instructions in use, or choose them."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

// Importing it registers the kernels. PyTorch has to be loaded.
PyMODINIT_FUNC PyInit__cpu() {
  if (const char* missing = torch_c::load()) {
    return PyErr_Format(PyExc_ImportError, "PyTorch is not loaded or older than 2.9: it lacks %s", missing);
  }
  try {
    register_kernels();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return nullptr;
  }
  return PyModule_Create(&module);
}
