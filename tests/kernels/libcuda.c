// A CUDA driver without a GPU, for Triton's own launcher: device 0 says it is sm_80, device 1 sm_90. Any host pointer passes for
// one of the device. A launch is checked against the cards' limits and counted; nothing runs.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, LAUNCH_OUT_OF_RESOURCES = 701 };

// The beginning of CUlaunchConfig.
typedef struct {
  unsigned grid[3], block[3], shared;
} Config;

static int device = 1;
static int launches;
static int context;

int standin_launches(void) { return launches; }
void standin_use(int which) { device = which; }

static int most_shared(void) { return (device ? 227 : 163) * 1024; }

int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGet(int *handle, int which) { return *handle = which, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 2, SUCCESS; }
int cuDevicePrimaryCtxRetain(void **found, int which) { return *found = &context, SUCCESS; }
int cuCtxGetCurrent(void **found) { return *found = &context, SUCCESS; }
int cuCtxSetCurrent(void *wanted) { return SUCCESS; }
int cuCtxGetDevice(int *handle) { return *handle = device, SUCCESS; }
int cuCtxGetLimit(size_t *value, int limit) { return *value = 0, SUCCESS; }
int cuCtxSetLimit(int limit, size_t value) { return SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int which) {
  switch (attribute) {
    case 8: *value = 48 * 1024; break;  // shared memory a block, without asking for more
    case 75: *value = device ? 9 : 8; break;
    case 76: *value = 0; break;
    case 81: *value = (device ? 228 : 164) * 1024; break;
    case 97: *value = most_shared(); break;
    default: *value = 1;
  }
  return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
  *module = &context;
  return memcmp(image, "\x7f" "ELF", 4) ? INVALID_VALUE : SUCCESS;
}
int cuModuleUnload(void *module) { return SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) { return *function = &context, SUCCESS; }
int cuFuncGetAttribute(int *value, int attribute, void *function) {
  *value = attribute == 0 ? 1024 : 0;  // the most threads a block; no registers, no static shared memory
  return SUCCESS;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
int cuFuncSetCacheConfig(void *function, int config) { return SUCCESS; }
int cuOccupancyMaxActiveClusters(int *count, void *function, const void *config) { return *count = 1, SUCCESS; }
int cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
  *(uint64_t *)value = pointer;
  return SUCCESS;
}
int cuTensorMapEncodeTiled(void *map) { return SUCCESS; }
int cuTensorMapEncodeIm2col(void *map) { return SUCCESS; }

int cuLaunchKernelEx(const Config *config, void *function, void **params, void **extra) {
  const unsigned *grid = config->grid, *block = config->block;
  if (function == NULL || params == NULL || grid[0] < 1 || grid[0] > 0x7fffffff || grid[1] < 1 || grid[1] > 65535 ||
      grid[2] < 1 || grid[2] > 65535 || block[0] * block[1] * block[2] > 1024)
    return INVALID_VALUE;
  if (config->shared > (unsigned)most_shared()) return LAUNCH_OUT_OF_RESOURCES;
  launches++;
  return SUCCESS;
}

int cuGetErrorString(int code, const char **text) {
  *text = code == INVALID_VALUE ? "invalid value" : code == LAUNCH_OUT_OF_RESOURCES ? "out of resources" : "unknown";
  return SUCCESS;
}
