#include "core/common/cpu_capability.h"

#include <atomic>

#ifdef SMILE_FAST_HAVE_X86
#include <cpuid.h>
#endif

namespace smile_fast {
namespace {

CpuCapability best() {
  if (runs(CpuCapability::avx512)) return CpuCapability::avx512;
  if (runs(CpuCapability::avx2)) return CpuCapability::avx2;
  return CpuCapability::plain;
}

#ifdef SMILE_FAST_HAVE_X86
// __builtin_cpu_supports of clang 14 does not know this name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

std::atomic<CpuCapability>& chosen() {
  static std::atomic<CpuCapability> value{best()};
  return value;
}

}  // namespace

bool runs(CpuCapability capability) {
#ifdef SMILE_FAST_HAVE_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (capability == CpuCapability::avx512) return avx512;
  if (capability == CpuCapability::avx2) return avx2;
#endif
  return capability == CpuCapability::plain;
}

CpuCapability cpu_capability() { return chosen().load(std::memory_order_relaxed); }

void use_cpu_capability(CpuCapability capability) { chosen().store(capability, std::memory_order_relaxed); }

}  // namespace smile_fast
