#include "units.h"

#if MCT_X86_KERNELS
#pragma GCC target("avx2,fma,bmi,bmi2")
#define MCT_ISA avx2
#define MCT_VL 8
#include "units_impl.h"
#endif
