// masked_bce_upsampled on an NVIDIA GPU. Nothing here needs CUDA's headers, Python or torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

// All addresses are the current device's; arrays are contiguous and may be unaligned to anything but their element.
struct MaskedBceUpsampledCudaArguments {
  DType dtype;                 // of logits and gradient
  const void* logits;          // [batch, organs, *low]
  const std::uint8_t* labels;  // [batch, *high]
  const std::uint32_t* table;  // [batch, 256, 2, ceil(organs / 32)]: known words, then positive words
  std::int64_t batch;
  std::int64_t organs;
  std::int64_t low[3];   // depth, height, width of the logits; depth 1 for images; not empty unless the labels are
  std::int64_t high[3];  // of the labels
  double* sums;          // [batch, organs], written
  std::int64_t* counts;  // [batch, organs], written: number of known voxels
  void* gradient;        // [batch, organs, *low], written; null if it is not wanted
};

// The largest number of voxels per logit along the width that masked_bce_upsampled_cuda takes.
constexpr std::int64_t kMaxUpsampledStride = 512;

// Bytes of device memory that masked_bce_upsampled_cuda works in: 2 KB an image, and one double per organ and tile (49
// logits of an image, 105 of a volume, and what they are interpolated to).
std::size_t masked_bce_upsampled_cuda_workspace(const MaskedBceUpsampledCudaArguments& arguments);

// Queues the work on a stream (a cudaStream_t) and returns. Semantics as the reference; throws std::runtime_error if
// CUDA refuses, or for more than kMaxUpsampledStride voxels per logit along the width.
//
// Sync: none. Numerics: interpolates and accumulates the gradient in float32, sums in float64, in an order that the
// sizes fix.
void masked_bce_upsampled_cuda(const MaskedBceUpsampledCudaArguments& arguments, void* workspace, void* stream);

}  // namespace smile_fast
