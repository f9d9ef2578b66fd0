// The inner part of scale_gradient_cpu: a run of elements of one channel, one thread.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

// Multiply the elements [begin, end) of a gradient.
using ScaleGradientKernel = void(DType dtype, void* gradient, std::int64_t begin, std::int64_t end, float factor);

namespace plain {
ScaleGradientKernel scale_gradient_kernel;
}
namespace avx2 {
ScaleGradientKernel scale_gradient_kernel;
}
namespace avx512 {
ScaleGradientKernel scale_gradient_kernel;
}

}  // namespace smile_fast
