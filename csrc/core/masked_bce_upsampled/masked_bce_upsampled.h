// masked_bce_upsampled: masked_bce of logits that are interpolated to the labels' size on the way.
//
//     u = A z,    L[b,k] = sum over voxels of w BCE(sigma(u), y),    dL/dz = A^T (w (sigma(u) - y))
//
// A interpolates bilinearly, or trilinearly, as torch's align_corners=False does
// (core/masked_bce_upsampled/interpolation.h). Neither u nor its gradient is ever stored at full resolution.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

struct Extent {
  std::int64_t depth;  // 1 for images
  std::int64_t height;
  std::int64_t width;
};

// All arrays are contiguous and may be unaligned to anything but their own element.
struct MaskedBceUpsampledArguments {
  DType dtype;                 // of logits and gradient
  const void* logits;          // [batch, organs, *low]
  const std::uint8_t* labels;  // [batch, *high]
  const std::uint32_t* table;  // [batch, 256, 2, ceil(organs / 32)]: known words, then positive words
  std::int64_t batch;
  std::int64_t organs;
  Extent low;            // of the logits; no axis may be empty unless the labels are
  Extent high;           // of the labels
  double* sums;          // [batch, organs], written
  std::int64_t* counts;  // [batch, organs], written: number of known voxels
  void* gradient;        // [batch, organs, *low], written; null if it is not wanted
  bool mean;             // as in MaskedBceArguments; the gradient is rounded to its dtype before it is divided
  float* loss;           // as in MaskedBceArguments
};

// Numerics: interpolates and accumulates the gradient in float32, sums in float64. The order of every sum is fixed by
// the sizes alone, so the result has the same bits whatever `threads` is. A logit is looked at for its value only by
// known voxels whose interpolation reads it, also if it does so with weight 0. There NaN gives NaN, and so does Inf
// next to a finite logit; a finite one beyond 2.3e38 counts as infinite.
void masked_bce_upsampled_cpu(const MaskedBceUpsampledArguments& arguments, int threads);

}  // namespace smile_fast
