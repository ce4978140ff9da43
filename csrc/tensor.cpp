#include "tensor.h"

#include "cpu/pool.h"

namespace mct::op {
namespace {

constexpr int64_t kPooledBytes = 1 << 16;  // smaller outputs are malloc's business
constexpr int64_t kMostDims = 8;

Dtype dtype_of(int32_t code) {
  const auto& f = torch_c::functions();
  static const int32_t float32 = f.aoti_torch_dtype_float32(), float64 = f.aoti_torch_dtype_float64(),
                       int64 = f.aoti_torch_dtype_int64();
  return code == float32   ? Dtype::float32
         : code == float64 ? Dtype::float64
         : code == int64   ? Dtype::int64
                           : Dtype::other;
}

}  // namespace

Tensor::Tensor(torch_c::TensorHandle handle) : handle_(handle) {
  const auto& f = torch_c::functions();
  static const int32_t cpu = f.aoti_torch_device_type_cpu(), strided = f.aoti_torch_layout_strided();
  int32_t device = 0, layout = 0, dtype = 0;
  MCT_TORCH(aoti_torch_get_device_type, handle, &device);
  MCT_TORCH(aoti_torch_get_layout, handle, &layout);
  if (device != cpu || layout != strided) return;
  MCT_TORCH(aoti_torch_get_dtype, handle, &dtype);
  MCT_TORCH(aoti_torch_get_dim, handle, &dim_);
  MCT_TORCH(aoti_torch_get_sizes, handle, &sizes_);
  MCT_TORCH(aoti_torch_get_strides, handle, &strides_);
  MCT_TORCH(aoti_torch_get_data_ptr, handle, &data_);
  dtype_ = dtype_of(dtype);
  plain_ = true;
}

Tensor::~Tensor() {
  if (handle_ != nullptr) torch_c::functions().aoti_torch_delete_tensor_object(handle_);
}

Tensor fresh(const int64_t* sizes, int64_t dim, Dtype dtype) {
  const auto& f = torch_c::functions();
  static const int32_t cpu = f.aoti_torch_device_type_cpu(), strided = f.aoti_torch_layout_strided();
  const int32_t code = dtype == Dtype::float32 ? f.aoti_torch_dtype_float32() : f.aoti_torch_dtype_float64();
  int64_t strides[kMostDims], count = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    strides[i] = count;
    count *= sizes[i];
  }
  torch_c::TensorHandle made = nullptr;
  const int64_t bytes = count * bytes_each(dtype);
  // Large ones come from the pool: fresh pages cost more than the arithmetic that fills them.
  if (bytes < kPooledBytes || f.torch_from_blob == nullptr) {
    MCT_TORCH(aoti_torch_empty_strided, dim, sizes, strides, code, cpu, 0, &made);
  } else {
    void* block = pool_acquire(static_cast<size_t>(bytes));
    const int32_t error = f.torch_from_blob(
        block, dim, sizes, strides, 0, code, cpu, -1, &made, strided, nullptr, 0,
        [](void* data, void*) { pool_release(data); }, nullptr);
    if (error != 0) pool_release(block);
    succeed(error, "torch_from_blob");
  }
  return Tensor(made);
}

}  // namespace mct::op
