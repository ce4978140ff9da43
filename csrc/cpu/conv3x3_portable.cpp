#include "conv3x3_kernels.h"

#define MCT_ISA portable
#define MCT_VL 4
#include "simd_vector.h"

#include "conv3x3_impl.h"
