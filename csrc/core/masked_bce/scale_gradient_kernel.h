// The inner part of scale_gradient_cpu: a run of elements of one plane, one thread.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

// Multiply the elements [begin, end) of a gradient.
using ScaleGradientBlock = void(DType dtype, void* gradient, std::int64_t begin, std::int64_t end, float factor);

namespace plain {
ScaleGradientBlock scale_gradient_block;
}
namespace avx2 {
ScaleGradientBlock scale_gradient_block;
}
namespace avx512 {
ScaleGradientBlock scale_gradient_block;
}

}  // namespace smile_fast
