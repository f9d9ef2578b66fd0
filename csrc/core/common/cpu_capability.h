// CPU capabilities: one binary that runs everywhere, and uses AVX-512, or AVX2 and FMA, where they are.
//
// CMakeLists.txt compiles every *_kernel.cpp once per capability, with SMILE_FAST_CPU_CAPABILITY naming the namespace
// its code is in and SMILE_FAST_LANES the floats of a vector: `plain` for whatever the compiler assumes, on x86-64 also
// `avx2` and `avx512`. (GCC's target_clones would need one attribute only, but GCC 12 does not vectorise the main loop
// in its clones, and sanitizers start too late for its ifunc resolvers.)
//
// A *_kernel.cpp must not use inline functions of other headers, std:: included, unless they are SMILE_FAST_INLINE: the
// linker keeps one copy of an inline function, and the copy made for AVX2 would fault on an older CPU.
#pragma once

#define SMILE_FAST_INLINE inline __attribute__((always_inline))

namespace smile_fast {

enum class CpuCapability { plain, avx2, avx512 };

// Whether this CPU, and this build, can run kernels of a capability.
bool runs(CpuCapability capability);

// The capability whose kernels run: the best one of this CPU, unless a test has chosen another.
CpuCapability cpu_capability();

// For tests and benchmarks: all kernels are those of this capability from now on. It must be one that runs here.
void use_cpu_capability(CpuCapability capability);

}  // namespace smile_fast

// The function `name` of the namespace of the current capability.
#ifdef SMILE_FAST_HAVE_X86
#define SMILE_FAST_DISPATCH(name)                                                        \
  (::smile_fast::cpu_capability() == ::smile_fast::CpuCapability::avx512 ? &avx512::name \
   : ::smile_fast::cpu_capability() == ::smile_fast::CpuCapability::avx2 ? &avx2::name   \
                                                                         : &plain::name)
#else
#define SMILE_FAST_DISPATCH(name) (&plain::name)
#endif
