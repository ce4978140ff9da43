// Checks of the operators' arguments, and their data as plain pointers.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "cpu/shapes.h"

namespace mct::op {

using at::Tensor;
using Maybe = const std::optional<Tensor>&;

// -------------------------------------------------------------------------------------------------------- checks

// Sizes that an argument must have; kAny is any size but 0.
constexpr int64_t kAny = -1;
using Sizes = std::initializer_list<int64_t>;

inline std::string shape_of(at::IntArrayRef sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + (sizes[i] == kAny ? "*" : std::to_string(sizes[i]));
  return text + ")";
}

class Checks {
 public:
  // `lead` sets the dtype and the device of all arguments.
  Checks(const char* name, const Tensor& lead) : name_(name), dtype_(lead.scalar_type()), device_(lead.device()) {
    TORCH_CHECK_VALUE(dtype_ == at::kFloat || dtype_ == at::kDouble, name, ": dtype ", dtype_,
                      " is not supported; use float32 or float64");
  }

  at::ScalarType dtype() const { return dtype_; }

  void shape(const char* name, const Tensor& t, Sizes wanted) const { shape_and_dtype(name, t, wanted, dtype_); }

  void shape_and_dtype(const char* name, const Tensor& t, Sizes wanted, at::ScalarType dtype) const {
    TORCH_CHECK_VALUE(t.device() == device_ && t.layout() == at::kStrided, name, ": on ", t.device(), " as ", t.layout(),
                      ", but ", name_, " is a dense tensor on ", device_);
    TORCH_CHECK_VALUE(t.scalar_type() == dtype, name, ": dtype ", t.scalar_type(), ", expected ", dtype, " as ", name_,
                      " requires");
    bool fits = t.dim() == static_cast<int64_t>(wanted.size());
    for (size_t i = 0; fits && i < wanted.size(); ++i) {
      const int64_t size = wanted.begin()[i];
      fits = size == kAny ? t.size(i) > 0 : t.size(i) == size;
    }
    TORCH_CHECK_VALUE(fits, name, ": shape ", shape_of(t.sizes()), ", expected ",
                      shape_of(at::IntArrayRef(wanted.begin(), wanted.size())), ", none of them empty");
  }

  void activation(const char* name, const Tensor& t, Sizes wanted) const {
    shape(name, t, wanted);
    TORCH_CHECK_VALUE(t.is_contiguous(), name, ": must be contiguous; call .contiguous()");
  }

  // Contiguous within each student; the student stride is free.
  void parameter(const char* name, const Tensor& t, Sizes wanted) const {
    shape(name, t, wanted);
    int64_t expected = 1;
    for (int64_t i = t.dim() - 1; i > 0; --i) {
      TORCH_CHECK_VALUE(t.size(i) == 1 || t.stride(i) == expected, name,
                        ": must be contiguous within each student; call .contiguous()");
      expected *= t.size(i);
    }
  }

  void activation(const char* name, Maybe t, Sizes wanted) const {
    if (t) activation(name, *t, wanted);
  }
  void parameter(const char* name, Maybe t, Sizes wanted) const {
    if (t) parameter(name, *t, wanted);
  }

 private:
  const char* name_;
  at::ScalarType dtype_;
  c10::Device device_;
};

inline void together(const char* a, bool has_a, const char* b, bool has_b) {
  TORCH_CHECK_VALUE(has_a == has_b, has_a ? b : a, ": must be given together with ", has_a ? a : b);
}

// ------------------------------------------------------------------------------------------------------- pointers

template <class T>
const T* data(const Tensor& t) {
  return t.const_data_ptr<T>();
}
template <class T>
const T* data(Maybe t) {
  return t ? t->const_data_ptr<T>() : nullptr;
}
template <class T>
T* out(const Tensor& t) {
  return t.mutable_data_ptr<T>();
}
template <class T>
mct::Param<T> param(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0)};
}
template <class T>
mct::Param<T> param(Maybe t) {
  if (!t) return {nullptr, 0};
  return {t->const_data_ptr<T>(), t->stride(0)};
}

template <class Fn>
void by_dtype(at::ScalarType dtype, const Fn& fn) {
  if (dtype == at::kFloat) {
    fn(float{});
  } else {
    fn(double{});
  }
}

// --------------------------------------------------------------------------------------------------------- blocks

struct BlockArguments {
  mct::BlockShape shape;
  at::ScalarType dtype;
  std::vector<int64_t> pooled;  // shape of the block's output
};

inline BlockArguments check_block(const Checks& check, const Tensor& z, Maybe gamma, Maybe beta, bool pool) {
  check.activation("z", z, {kAny, kAny, kAny, kAny, kAny});
  const int64_t S = z.size(0), B = z.size(1), H = z.size(2), W = z.size(3), C = z.size(4);
  together("gamma", gamma.has_value(), "beta", beta.has_value());
  check.parameter("gamma", gamma, {S, C});
  check.parameter("beta", beta, {S, C});
  TORCH_CHECK_VALUE(!pool || (H >= 2 && W >= 2), "z: planes of ", H, "x", W,
                    " are too small for a 2x2 pool; use fewer blocks or larger images");
  const int64_t by = pool ? 2 : 1;
  return {{S, B, H, W, C, pool}, z.scalar_type(), {S, B, H / by, W / by, C}};
}

inline void check_output(const Checks& check, const char* name, const Tensor& t, const BlockArguments& a) {
  check.activation(name, t, {a.pooled[0], a.pooled[1], a.pooled[2], a.pooled[3], a.pooled[4]});
}

inline void check_tangent(const Checks& check, const BlockArguments& a, const Tensor& zdot, const Tensor& mean,
                   const Tensor& rstd, Maybe gamma, Maybe gammadot, Maybe betadot) {
  const auto& s = a.shape;
  together("gamma", gamma.has_value(), "gammadot", gammadot.has_value());
  together("gamma", gamma.has_value(), "betadot", betadot.has_value());
  check.activation("zdot", zdot, {s.S, s.B, s.H, s.W, s.C});
  check.activation("mean", mean, {s.S, s.B, s.C});
  check.activation("rstd", rstd, {s.S, s.B, s.C});
  check.parameter("gammadot", gammadot, {s.S, s.C});
  check.parameter("betadot", betadot, {s.S, s.C});
}

// Of the fused tangent of the cotangents: what check_tangent does not see.
inline void check_tangent_backward(const Checks& check, const BlockArguments& a, const Tensor& gp, const Tensor& gpdot,
                                   const Tensor& mean_zdot, const Tensor& mean_xhat_zdot) {
  const auto& s = a.shape;
  check_output(check, "gp", gp, a);
  check_output(check, "gpdot", gpdot, a);
  check.activation("mean_zdot", mean_zdot, {s.S, s.B, s.C});
  check.activation("mean_xhat_zdot", mean_xhat_zdot, {s.S, s.B, s.C});
}

// ------------------------------------------------------------------------------------------------ flat parameters

// Returns L. Does not look at the numbers.
inline int64_t check_offsets_shape(const Checks& check, const Tensor& offsets) {
  check.shape_and_dtype("offsets", offsets, {kAny}, at::kLong);
  TORCH_CHECK_VALUE(offsets.is_contiguous(), "offsets: must be contiguous; call .contiguous()");
  TORCH_CHECK_VALUE(offsets.size(0) >= 2, "offsets: needs at least two entries, 0 and the number of parameters");
  return offsets.size(0) - 1;
}

}  // namespace mct::op
