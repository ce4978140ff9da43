#include "units.h"

#define MCT_ISA portable
#define MCT_VL 4
#include "units_impl.h"
