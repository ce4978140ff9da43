// The compiled file runs on Linux systems with glibc 2.28 or later (manylinux_2_28), wherever it is linked: the linker hands the
// functions below, whose newest versions are younger, to these (setup.py, --wrap). Each calls the version that has been there
// from the beginning, which computes the same bits.
#if defined(__linux__) && defined(__x86_64__)
#include <new>

#ifdef __GLIBC__
extern "C" {
double mct_exp(double);
double mct_log(double);
void* mct_dlopen(const char*, int);
void* mct_dlsym(void*, const char*);
__asm__(".symver mct_exp, exp@GLIBC_2.2.5");
__asm__(".symver mct_log, log@GLIBC_2.2.5");
__asm__(".symver mct_dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver mct_dlsym, dlsym@GLIBC_2.2.5");

double __wrap_exp(double x) { return mct_exp(x); }
double __wrap_log(double x) { return mct_log(x); }
void* __wrap_dlopen(const char* file, int mode) { return mct_dlopen(file, mode); }
void* __wrap_dlsym(void* library, const char* name) { return mct_dlsym(library, name); }

// Of libstdc++ 11; its memory is asked for by containers.
[[noreturn]] void __wrap__ZSt28__throw_bad_array_new_lengthv() { throw std::bad_array_new_length(); }
}
#endif
#endif
