// Instruction sets: one binary that runs everywhere, and uses AVX-512, or AVX2 and FMA, where they are.
//
// CMakeLists.txt compiles every *_block.cpp once per target, with SMILE_FAST_TARGET naming the namespace its code is
// in and SMILE_FAST_LANES the floats of a vector: `plain` for whatever the compiler assumes, on x86-64 also `avx2` and
// `avx512`. (GCC's target_clones would need one attribute only, but GCC 12 does not vectorise the main loop in its
// clones, and sanitizers start too late for its ifunc resolvers.)
//
// A *_block.cpp must not use inline functions of other headers, std:: included, unless they are SMILE_FAST_INLINE: the
// linker keeps one copy of an inline function, and the copy made for AVX2 would fault on an older CPU.
#pragma once

#define SMILE_FAST_INLINE inline __attribute__((always_inline))

namespace smile_fast {

enum class Target { plain, avx2, avx512 };

// Whether this CPU, and this build, can run a target.
bool runs(Target target);

// The target that the kernels use: the best one that runs here, unless a test has chosen another.
Target target();

// For tests and benchmarks: all kernels use this target from now on. It must be one that runs here.
void use_target(Target target);

}  // namespace smile_fast

// The function `name` of the current target's namespace.
#ifdef SMILE_FAST_HAVE_X86
#define SMILE_FAST_DISPATCH(name)                                         \
  (::smile_fast::target() == ::smile_fast::Target::avx512 ? &avx512::name \
   : ::smile_fast::target() == ::smile_fast::Target::avx2 ? &avx2::name   \
                                                          : &plain::name)
#else
#define SMILE_FAST_DISPATCH(name) (&plain::name)
#endif
