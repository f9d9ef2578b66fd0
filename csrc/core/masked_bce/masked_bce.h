// masked_bce: K independent sigmoid losses, each over the voxels on which its organ is known.
//
//     L[b,k] = sum over voxels of w BCE(sigma(z), y),    dL/dz = w (sigma(z) - y)
//
// (equation 1 of Petit et al., DLMIA 2018). w and y are two bits that the label value finds in a table.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

// All arrays are contiguous and may be unaligned to anything but their own element.
struct MaskedBceArguments {
  DType dtype;                 // of logits and gradient
  const void* logits;          // [batch, organs, voxels]
  const std::uint8_t* labels;  // [batch, voxels]
  const std::uint32_t* table;  // [batch, 256, 2, ceil(organs / 32)]: known words, then positive words
  std::int64_t batch;
  std::int64_t organs;
  std::int64_t voxels;
  double* sums;          // [batch, organs], written
  std::int64_t* counts;  // [batch, organs], written: number of known voxels
  void* gradient;        // [batch, organs, voxels], written; may be the logits' own memory; null if it is not wanted
  bool mean;             // the loss, and the gradient where divides_gradient says so, over the known pairs
  float* loss;           // [1], written: the sum of all sums; with `mean` divided by the known (voxel, organ) pairs
};

// Whether the gradient of a mean is divided as well. In float16, 1 / N underflows: there, the backward pass divides.
inline bool divides_gradient(DType dtype, bool mean) { return mean && dtype != DType::float16; }

// Numerics: float32 per voxel, float64 per sum. The order of every sum is fixed by the sizes alone, so the result has
// the same bits whatever `threads` is. A logit with w = 0 is never looked at for its value: NaN and Inf do not leak.
void masked_bce_cpu(const MaskedBceArguments& arguments, int threads);

}  // namespace smile_fast
