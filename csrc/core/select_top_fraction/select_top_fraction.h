// select_top_fraction: the highest-scoring ceil(gamma * n) of the n candidates of every segment, exactly.
//
// A sample of a segment's scores gives a bracket that very probably holds the lowest selected score. One read of the
// scores then selects what is above the bracket and keeps the few candidates inside of it, among which a histogram of
// their keys finds the exact threshold. If the sample misled, histograms of the scores themselves narrow the bracket
// and the read is repeated: only the time depends on luck, never the result.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

// All arrays are contiguous and may be unaligned to anything but their own element.
struct SelectTopFractionArguments {
  DType dtype;                     // of the scores
  const void* scores;              // [length]
  const std::uint8_t* candidates;  // [length]: not 0 where the voxel may be selected
  std::int64_t length;
  const double* gamma;          // [segments]: share to select; clipped to [0, 1], NaN is 0
  const std::int64_t* offsets;  // [segments + 1]: segment s holds the voxels offsets[s] to offsets[s + 1] - 1
  std::int64_t segments;        // what is outside of 0..length, or decreases, is cut off
  std::uint8_t* selection;      // [length], written: 1 where selected, else 0
};

// Ties go to the lowest index, -0 equals +0, and NaN ranks below -inf. The result is exact, so it is the same whatever
// `threads` is. Memory: 24 bytes per 8,192 voxels, and 8 bytes per candidate near the threshold.
void select_top_fraction_cpu(const SelectTopFractionArguments& arguments, int threads);

}  // namespace smile_fast
