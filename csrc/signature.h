// The operators' entry into PyTorch's dispatcher: whether arguments fit a signature, and their data as plain pointers.
//
// The signature itself stands once, in Python (mct_fast/ops), which declares it here; the words of an error stand there too.
// In C++ remains what every call needs and memory depends on: a test without words. When it fails, Python finds them.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.h"
#include "torch_c.h"

namespace mct::op {

// ----------------------------------------------------------------------------------------------------- signatures

// The tensors of a call in the order of the arguments, null for an absent one, and the value of its flag.
struct Given {
  std::array<const Tensor*, 16> tensors{};
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
    std::optional<Dtype> dtype;
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

// One argument off the dispatcher's stack; what it owned is owned by the result.
template <class T>
T take(torch_c::Value value) {
  if constexpr (std::is_same_v<T, Tensor>) {
    return Tensor(reinterpret_cast<torch_c::TensorHandle>(value));
  } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
    auto* held = reinterpret_cast<torch_c::Value*>(value);
    if (held == nullptr) return std::nullopt;
    const torch_c::Value inner = *held;
    if (torch_c::functions().torch_delete_stable_ivalue != nullptr) {
      torch_c::functions().torch_delete_stable_ivalue(held);
    } else {
      delete held;
    }
    return take<Tensor>(inner);
  } else {
    T number;
    std::memcpy(&number, &value, sizeof number);
    return number;
  }
}

inline torch_c::Value give(Tensor&& t) { return reinterpret_cast<torch_c::Value>(t.release()); }

template <class... T>
void give_all(std::tuple<T...>&& results, torch_c::Value* stack) {
  std::apply([&](T&... t) { ((*stack++ = give(std::move(t))), ...); }, results);
}
inline void give_all(Tensor&& result, torch_c::Value* stack) { *stack = give(std::move(result)); }

template <auto kernel>
struct Checked;

// A kernel behind its signature, as the dispatcher calls it. Python knows the error by its words (mct_fast/ops/operator.py).
template <class R, class... A, R (*kernel)(A...)>
struct Checked<kernel> {
  static inline const char* name = nullptr;
  static inline const Signature* signature = nullptr;

  static void call(torch_c::Value* stack, uint64_t, uint64_t) { call(stack, std::index_sequence_for<A...>{}); }

 private:
  template <size_t... I>
  static void call(torch_c::Value* stack, std::index_sequence<I...>) {
    std::tuple<std::remove_cv_t<std::remove_reference_t<A>>...> args{
        take<std::remove_cv_t<std::remove_reference_t<A>>>(stack[I])...};
    Given given;
    (given.add(std::get<I>(args)), ...);
    try {
      require(signature->fits(given));
      if constexpr (std::is_void_v<R>) {
        kernel(std::get<I>(args)...);
      } else {
        give_all(kernel(std::get<I>(args)...), stack);
      }
    } catch (const Unfit&) {
      throw std::runtime_error(std::string("mct_fast::") + name +
                               ": the compiled kernel does not take these arguments; call .clone() on them");
    }
  }
};

// Registers a kernel for the CPU.
template <auto kernel>
void checked(torch_c::LibraryHandle library, const char* op) {
  Checked<kernel>::name = op;
  Checked<kernel>::signature = &signature_of(op);
  MCT_TORCH(aoti_torch_library_impl, library, op, &Checked<kernel>::call);
}

}  // namespace mct::op
