// A tensor as the operators see it: what PyTorch says of it, asked once, and its data.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "cpu/shapes.h"
#include "torch_c.h"

namespace mct::op {

inline void succeed(int32_t error, const char* call) {
  if (error != 0) throw std::runtime_error(std::string("mct_fast: PyTorch's ") + call + " failed; its log says why");
}

// Calls a function of PyTorch's C interface that returns an error code.
#define MCT_TORCH(name, ...) ::mct::op::succeed(::mct::torch_c::functions().name(__VA_ARGS__), #name)

enum class Dtype : uint8_t { float32, float64, int64, other };

// Owns a handle.
class Tensor {
 public:
  explicit Tensor(torch_c::TensorHandle handle);
  Tensor(Tensor&& from) noexcept : handle_(from.release()), plain_(from.plain_), dtype_(from.dtype_), dim_(from.dim_),
                                   sizes_(from.sizes_), strides_(from.strides_), data_(from.data_) {}
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor();

  // Whether it is a dense tensor on the CPU. Nothing below holds for any other.
  bool plain() const { return plain_; }
  Dtype dtype() const { return dtype_; }
  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  const int64_t* sizes() const { return sizes_; }
  void* data() const { return data_; }

  torch_c::TensorHandle release() noexcept {
    const torch_c::TensorHandle handle = handle_;
    handle_ = nullptr;
    return handle;
  }

 private:
  torch_c::TensorHandle handle_;
  bool plain_ = false;
  Dtype dtype_ = Dtype::other;
  int64_t dim_ = 0;
  int64_t *sizes_ = nullptr, *strides_ = nullptr;
  void* data_ = nullptr;
};

using Maybe = const std::optional<Tensor>&;

// A contiguous tensor on the CPU with nothing in it.
Tensor fresh(const int64_t* sizes, int64_t dim, Dtype dtype);
inline Tensor fresh(std::initializer_list<int64_t> sizes, Dtype dtype) {
  return fresh(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

// ------------------------------------------------------------------------------------------------------- pointers

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data());
}
template <class T>
const T* data(Maybe t) {
  return t ? data<T>(*t) : nullptr;
}
template <class T>
T* out(const Tensor& t) {
  return static_cast<T*>(t.data());
}
template <class T>
mct::Param<T> param(const Tensor& t) {
  return {data<T>(t), t.stride(0)};
}
template <class T>
mct::Param<T> param(Maybe t) {
  if (!t) return {nullptr, 0};
  return param<T>(*t);
}

template <class Fn>
void by_dtype(const Tensor& lead, const Fn& fn) {
  if (lead.dtype() == Dtype::float32) {
    fn(float{});
  } else {
    fn(double{});
  }
}

inline int64_t bytes_each(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 8; }

// Whether the stretches of memory of two tensors overlap.
inline bool shares_memory(const Tensor& a, const Tensor& b) {
  const auto end = [](const Tensor& t) {
    int64_t last = 1;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    return data<char>(t) + last * bytes_each(t.dtype());
  };
  return data<char>(a) < end(b) && data<char>(b) < end(a);
}

}  // namespace mct::op
