// The inner part of masked_bce_cpu: a run of voxels of one image, all organs, one thread.
#pragma once

#include <cstdint>

#include "core/masked_bce/masked_bce.h"

namespace smile_fast {

// Work on the voxels [begin, end) of one image: write their gradients, divided, and their losses to sums[organ].
using MaskedBceKernel = void(const MaskedBceArguments& arguments, std::int64_t image, std::int64_t begin,
                             std::int64_t end, float divisor, double* sums);

namespace plain {
MaskedBceKernel masked_bce_kernel;
}
namespace avx2 {
MaskedBceKernel masked_bce_kernel;
}
namespace avx512 {
MaskedBceKernel masked_bce_kernel;
}

}  // namespace smile_fast
