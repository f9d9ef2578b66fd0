// Compiled once per CPU capability, see core/common/cpu_capability.h.
#include "core/masked_bce/scale_gradient_kernel.h"

#include "core/common/simd.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {
namespace {

template <typename Logit>
SMILE_FAST_INLINE void scale(Logit* gradient, std::int64_t length, float factor) {
  std::int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) store(gradient + i, load(gradient + i) * factor);
  for (; i < length; ++i) gradient[i] = from_float<Logit>(to_float(gradient[i]) * factor);
}

}  // namespace

void scale_gradient_kernel(DType dtype, void* gradient, std::int64_t begin, std::int64_t end, float factor) {
  switch (dtype) {
    case DType::float32:
      return scale(static_cast<float*>(gradient) + begin, end - begin, factor);
    case DType::bfloat16:
      return scale(static_cast<BFloat16*>(gradient) + begin, end - begin, factor);
    case DType::float16:
      return scale(static_cast<Float16*>(gradient) + begin, end - begin, factor);
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
