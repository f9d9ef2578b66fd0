// Instruction sets: one binary that runs everywhere, and uses AVX2 and FMA where they are.
//
// CMakeLists.txt compiles every *_block.cpp once per target, with SMILE_FAST_TARGET naming the namespace its code is
// in: `plain` for whatever the compiler assumes, `avx2` on x86-64. (GCC's target_clones would need one attribute only,
// but GCC 12 does not vectorise the main loop in its clones, and sanitizers start too late for its ifunc resolvers.)
//
// A *_block.cpp must not use inline functions of other headers, std:: included, unless they are SMILE_FAST_INLINE: the
// linker keeps one copy of an inline function, and the copy made for AVX2 would fault on an older CPU.
#pragma once

#define SMILE_FAST_INLINE inline __attribute__((always_inline))

namespace smile_fast {

inline bool cpu_has_avx2() {
#ifdef SMILE_FAST_HAVE_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

}  // namespace smile_fast
