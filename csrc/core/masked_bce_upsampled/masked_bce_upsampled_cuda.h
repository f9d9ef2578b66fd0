// masked_bce_upsampled on an NVIDIA GPU. Nothing here needs CUDA's headers, Python or torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/masked_bce_upsampled/masked_bce_upsampled.h"

namespace smile_fast {

// The largest number of voxels per logit along the width that masked_bce_upsampled_cuda takes.
constexpr std::int64_t kMaxUpsampledStride = 512;

// Bytes of device memory that masked_bce_upsampled_cuda works in: 2 KB an image, and one double per organ and tile (49
// logits of an image, 105 of a volume, and what they are interpolated to).
std::size_t masked_bce_upsampled_cuda_workspace(const MaskedBceUpsampledArguments& arguments);

// Queues the work on a stream (a cudaStream_t) and returns; all addresses are the current device's. Semantics as the
// reference; throws std::runtime_error if CUDA refuses, or for more than kMaxUpsampledStride voxels per logit along the
// width.
//
// Sync: none. Numerics: interpolates and accumulates the gradient in float32, sums in float64, in an order that the
// sizes fix.
void masked_bce_upsampled_cuda(const MaskedBceUpsampledArguments& arguments, void* workspace, void* stream);

}  // namespace smile_fast
