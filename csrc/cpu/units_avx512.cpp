#include "units.h"

#if MCT_X86_KERNELS
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2")
#define MCT_ISA avx512
#define MCT_VL 16
#include "units_impl.h"
#endif
