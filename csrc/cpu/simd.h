// Which vector instructions the kernels use, decided at run time.
//
// A kernel is one implementation header written with GCC vector extensions. It is compiled three times through small
// files, each of which includes its standard headers FIRST, then switches the target on:
//
//   foo_avx512.cpp:  #include "foo_kernels.h"      // declarations and every standard header the implementation needs
//                    #include "simd.h"
//                    #if MCT_X86_KERNELS
//                    #pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2")
//                    #define MCT_ISA avx512
//                    #define MCT_VL 16
//                    #include "simd_vector.h"      // mct::avx512::vf, load, store, ...
//                    #include "foo_impl.h"         // namespace mct::MCT_ISA { ... }
//                    #endif
//   foo_avx2.cpp:    the same with target("avx2,fma,bmi,bmi2"), MCT_ISA avx2, MCT_VL 8
//   foo_portable.cpp: no pragma and no #if, MCT_ISA portable, MCT_VL 4
//
// Implementation headers keep everything in namespace mct::MCT_ISA and call no inline or template function of the
// standard library: such a function could be emitted with AVX-512 code and then be the copy that everybody links.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MCT_X86_KERNELS 1
#else
#define MCT_X86_KERNELS 0
#endif

namespace mct {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

// The widest set that this processor and this build have.
Isa best_isa() noexcept;

// The set in use: best_isa() unless set_isa() chose a narrower one.
Isa active_isa() noexcept;

// For tests: use `isa` from now on. False, and nothing changes, where the processor or the build lacks it.
bool set_isa(Isa isa) noexcept;

}  // namespace mct
