// PyTorch through its C interface: the few functions that the operators need, found at run time in the library that the
// process has loaded. No header of PyTorch is needed to compile, and what is compiled serves every PyTorch since 2.9.
//
// The declarations are those of torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h, which PyTorch
// keeps stable; tests/test_build.py compiles them beside the installed headers.
#pragma once

#include <cstddef>
#include <cstdint>

struct AtenTensorOpaque;
class TorchLibraryOpaque;

namespace mct::torch_c {

using TensorHandle = AtenTensorOpaque*;
using LibraryHandle = TorchLibraryOpaque*;
using Value = uint64_t;  // an argument or a result: a number, a flag, a tensor's handle, or a pointer to a value or null
using Kernel = void (*)(Value*, uint64_t, uint64_t);

// name, result, arguments
#define MCT_TORCH_FUNCTIONS(X)                                                                                          \
  X(aoti_torch_device_type_cpu, int32_t, ())                                                                            \
  X(aoti_torch_dtype_float32, int32_t, ())                                                                              \
  X(aoti_torch_dtype_float64, int32_t, ())                                                                              \
  X(aoti_torch_dtype_int64, int32_t, ())                                                                                \
  X(aoti_torch_layout_strided, int32_t, ())                                                                             \
  X(aoti_torch_get_data_ptr, int32_t, (TensorHandle, void**))                                                           \
  X(aoti_torch_get_dim, int32_t, (TensorHandle, int64_t*))                                                              \
  X(aoti_torch_get_sizes, int32_t, (TensorHandle, int64_t**))                                                           \
  X(aoti_torch_get_strides, int32_t, (TensorHandle, int64_t**))                                                         \
  X(aoti_torch_get_dtype, int32_t, (TensorHandle, int32_t*))                                                            \
  X(aoti_torch_get_device_type, int32_t, (TensorHandle, int32_t*))                                                      \
  X(aoti_torch_get_layout, int32_t, (TensorHandle, int32_t*))                                                           \
  X(aoti_torch_delete_tensor_object, int32_t, (TensorHandle))                                                           \
  X(aoti_torch_empty_strided, int32_t,                                                                                  \
    (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, TensorHandle*))                                \
  X(aoti_torch_library_init_impl, int32_t, (const char*, const char*, const char*, uint32_t, LibraryHandle*))           \
  X(aoti_torch_library_impl, int32_t, (LibraryHandle, const char*, Kernel))

// Null where PyTorch is older than the version beside it.
#define MCT_TORCH_NEWER_FUNCTIONS(X)                                                                                    \
  X(torch_from_blob, int32_t, /* 2.11 */                                                                                \
    (void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, TensorHandle*, int32_t,        \
     const uint8_t*, int64_t, void (*)(void*, void*), void*))                                                           \
  X(torch_delete_stable_ivalue, int32_t, (Value*)) /* 2.13 */

struct Functions {
#define MCT_MEMBER(name, result, arguments) result(*name) arguments;
  MCT_TORCH_FUNCTIONS(MCT_MEMBER)
  MCT_TORCH_NEWER_FUNCTIONS(MCT_MEMBER)
#undef MCT_MEMBER
};

// Those of the PyTorch in this process; call load() before.
const Functions& functions();

// Finds them. Returns null, or the name of one that is missing.
const char* load();

}  // namespace mct::torch_c
