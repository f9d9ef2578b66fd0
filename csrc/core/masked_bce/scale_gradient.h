// scale_gradient: what the backward pass of the losses does with a gradient that the forward pass made.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

struct ScaleGradientArguments {
  DType dtype;
  void* gradient;         // [channels, voxels], overwritten
  const double* factors;  // [channels]
  std::int64_t channels;
  std::int64_t voxels;
};

constexpr double kUnitFactor = 1e-9;  // a factor this near to 1 changes no float32 or 16-bit gradient

// gradient *= factors, channel by channel: a product in float32, rounded once. A channel whose factor is 1 (to
// kUnitFactor) is neither read nor written.
void scale_gradient_cpu(const ScaleGradientArguments& arguments, int threads);

}  // namespace smile_fast
