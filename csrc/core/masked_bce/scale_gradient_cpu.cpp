#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/common/cpu_capability.h"
#include "core/common/parallel.h"
#include "core/masked_bce/scale_gradient.h"
#include "core/masked_bce/scale_gradient_kernel.h"

namespace smile_fast {
namespace {

constexpr std::int64_t kChunk = 1 << 16;  // elements of one work item

}  // namespace

void scale_gradient_cpu(const ScaleGradientArguments& a, int threads) {
  const std::int64_t chunks = (a.voxels + kChunk - 1) / kChunk;  // of one channel
  ScaleGradientKernel* const kernel = SMILE_FAST_DISPATCH(scale_gradient_kernel);
  parallel_for(a.channels * chunks, threads, [&](std::int64_t item) {
    const std::int64_t channel = item / chunks, begin = item % chunks * kChunk,
                       end = std::min(begin + kChunk, a.voxels);
    const double factor = a.factors[channel];
    if (std::abs(factor - 1.0) < kUnitFactor) return;
    kernel(a.dtype, a.gradient, channel * a.voxels + begin, channel * a.voxels + end, static_cast<float>(factor));
  });
}

}  // namespace smile_fast
