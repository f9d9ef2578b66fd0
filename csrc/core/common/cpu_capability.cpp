#include "core/common/cpu_capability.h"

#include <atomic>

#ifdef SMILE_FAST_HAVE_X86
#include <cpuid.h>
#endif

namespace smile_fast {
namespace {

Target best() {
  if (runs(Target::avx512)) return Target::avx512;
  if (runs(Target::avx2)) return Target::avx2;
  return Target::plain;
}

#ifdef SMILE_FAST_HAVE_X86
// __builtin_cpu_supports of clang 14 does not know this name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

std::atomic<Target>& chosen() {
  static std::atomic<Target> value{best()};
  return value;
}

}  // namespace

bool runs(Target target) {
#ifdef SMILE_FAST_HAVE_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (target == Target::avx512) return avx512;
  if (target == Target::avx2) return avx2;
#endif
  return target == Target::plain;
}

Target target() { return chosen().load(std::memory_order_relaxed); }

void use_target(Target target) { chosen().store(target, std::memory_order_relaxed); }

}  // namespace smile_fast
