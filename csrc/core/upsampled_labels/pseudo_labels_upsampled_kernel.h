// The inner parts of pseudo_labels_upsampled_cpu: one slice, one thread.
//
// A voxel's key is the bits of its score less one, which order candidates as their scores do; it is negative for what
// is no candidate.
#pragma once

#include <cstdint>

#include "core/upsampled_labels/pseudo_labels_upsampled.h"

namespace smile_fast {

// Selected are the voxels of a slice with a key above `key`, and those with this key that lie before `end`.
struct Cut {
  std::int32_t key;
  std::int64_t end;  // index in the slice
};

// Keys of `bins` ranges of 2^shift keys each, the first of which begins with `key`.
struct KeyBins {
  std::int32_t key;
  int shift;
  std::int32_t bins;
};

// Count the candidates of one organ in each of the ranges; histogram: [bins.bins + 1], added to, the last one being
// for everything else. scratch: [4, pitch].
using CountKeysKernel = void(const PseudoLabelsUpsampledArguments& arguments, const double* weights, std::int64_t slice,
                             std::int64_t channel, const KeyBins& bins, float* scratch, std::uint32_t* histogram);

// Write the indices in the slice of all candidates with a key, in any order; returns the end of what was written.
using FindKeyKernel = std::int64_t*(const PseudoLabelsUpsampledArguments& arguments, const double* weights,
                                    std::int64_t slice, std::int64_t channel, std::int32_t key, float* scratch,
                                    std::int64_t* places);

// Write the overlay of one slice, and add to the numbers of kept voxels. cuts, kept: [organ_count]; scratch:
// [1 + 3 organ_count, pitch].
using OverlayKernel = void(const PseudoLabelsUpsampledArguments& arguments, const double* weights, std::int64_t slice,
                           const Cut* cuts, float* scratch, std::int64_t* kept);

namespace plain {
CountKeysKernel count_keys_kernel;
FindKeyKernel find_key_kernel;
OverlayKernel overlay_kernel;
}  // namespace plain
namespace avx2 {
CountKeysKernel count_keys_kernel;
FindKeyKernel find_key_kernel;
OverlayKernel overlay_kernel;
}  // namespace avx2
namespace avx512 {
CountKeysKernel count_keys_kernel;
FindKeyKernel find_key_kernel;
OverlayKernel overlay_kernel;
}  // namespace avx512

}  // namespace smile_fast
