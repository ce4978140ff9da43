// The operators' entry into PyTorch's dispatcher: whether arguments fit a signature, and their data as plain pointers.
//
// The signature itself stands once, in Python (mct_fast/ops), which declares it here; the words of an error stand there too.
// In C++ remains what every call needs and memory depends on: a test without words. When it fails, Python is asked.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cpu/shapes.h"

namespace mct::op {

using at::Tensor;
using Maybe = const std::optional<Tensor>&;

// ----------------------------------------------------------------------------------------------------- signatures

// The tensors of a call in the order of the arguments, null for an absent one, and the value of its flag.
struct Given {
  std::array<const Tensor*, 12> tensors{};
  size_t count = 0;
  bool pool = false;

  void add(const Tensor& t) { tensors[count++] = &t; }
  void add(Maybe t) { tensors[count++] = t ? &*t : nullptr; }
  void add(bool flag) { pool = flag; }
  void add(double) {}
};

class Signature {
 public:
  // One line a tensor: "lead|-  together|-  whole|student  dtype|-  dimension...", as mct_fast/ops/signature.py explains.
  void declare(const std::vector<std::string>& lines);

  // Whether the kernel may read what is given: dtypes, device, layouts, sizes.
  bool fits(const Given& given) const;

 private:
  enum class Derived : uint8_t { no, half_if_pool, one_more };
  struct Dim {
    int64_t number;  // the size itself, or -1
    int symbol;      // an index of the sizes
    Derived derived;
  };
  struct Spec {
    bool together, whole;
    std::optional<at::ScalarType> dtype;
    std::vector<Dim> dims;
  };
  static constexpr int kSymbols = 8;
  using Sizes = std::array<int64_t, kSymbols>;

  static bool sized(const Spec& spec, const Tensor& t, bool pool, Sizes& sizes);
  static bool contiguous(const Spec& spec, const Tensor& t);

  std::vector<Spec> specs_;
  size_t lead_ = 0;
};

// The signature of an operator; empty, and fitting nothing, until it is declared.
Signature& signature_of(const std::string& op);

// A kernel throws it for what shapes do not show: numbers, or memory that overlaps.
struct Unfit {};

inline void require(bool fits) {
  if (!fits) throw Unfit{};
}

template <auto kernel>
struct Checked;

// A kernel behind its signature. What does not fit goes to the fake kernel, which is Python's and says what is wrong.
template <class R, class... A, R (*kernel)(A...)>
struct Checked<kernel> {
  static inline const char* name = nullptr;  // set before initialisers of objects run
  static inline const Signature* signature = nullptr;

  static R call(A... args) {
    Given given;
    (given.add(args), ...);
    if (signature->fits(given)) {
      try {
        return kernel(args...);
      } catch (const Unfit&) {
      }
    }
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("mct_fast::") + name).c_str(), "")
                               .template typed<R(A...)>();
    op.redispatch(c10::DispatchKeySet(c10::DispatchKey::Meta), args...);
    TORCH_CHECK_VALUE(false, "mct_fast::", name, ": the compiled kernel does not take these arguments; call .clone() on them");
  }
};

template <auto kernel>
auto* checked(const char* op) {
  Checked<kernel>::name = op;
  Checked<kernel>::signature = &signature_of(op);
  return &Checked<kernel>::call;
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
void by_dtype(const Tensor& lead, const Fn& fn) {
  if (lead.scalar_type() == at::kFloat) {
    fn(float{});
  } else {
    fn(double{});
  }
}

// Whether the stretches of memory of two tensors overlap.
inline bool shares_memory(const Tensor& a, const Tensor& b) {
  const auto end = [](const Tensor& t) {
    int64_t last = 1;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    return static_cast<const char*>(t.const_data_ptr()) + last * t.element_size();
  };
  return static_cast<const char*>(a.const_data_ptr()) < end(b) && static_cast<const char*>(b.const_data_ptr()) < end(a);
}

}  // namespace mct::op
