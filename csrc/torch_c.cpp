#include "torch_c.h"

#include <dlfcn.h>

namespace mct::torch_c {
namespace {

Functions found{};

}  // namespace

const Functions& functions() { return found; }

const char* load() {
  // Python loads extensions without making their libraries' names global: PyTorch's library is asked for by its own name.
  void* library = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) library = RTLD_DEFAULT;
#define MCT_FIND(name, result, arguments) found.name = reinterpret_cast<decltype(found.name)>(dlsym(library, #name));
  MCT_TORCH_FUNCTIONS(MCT_FIND)
  MCT_TORCH_NEWER_FUNCTIONS(MCT_FIND)
#undef MCT_FIND
#define MCT_REQUIRE(name, result, arguments) \
  if (found.name == nullptr) return #name;
  MCT_TORCH_FUNCTIONS(MCT_REQUIRE)
#undef MCT_REQUIRE
  return nullptr;
}

}  // namespace mct::torch_c
