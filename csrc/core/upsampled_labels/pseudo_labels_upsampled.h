// pseudo_labels_upsampled: a relabelling round of one case, from low-resolution logits to pseudo-label codes.
//
// An organ's score is its interpolated logit, rounded to float32. Candidates are the voxels with label 0 and a score
// above 0. Of the n candidates of a segment (the volume, or a slice) the highest ceil(gamma n) are selected, ties to
// the lowest voxel index. A voxel that two organs select goes to the higher score, then to the lower organ.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"
#include "core/upsampled_labels/cell_grid.h"

namespace smile_fast {

constexpr std::uint8_t kPseudoBit = 0x80;  // of a label value that a relabelling round has given

struct PseudoLabelsUpsampledArguments {
  DType dtype;
  const void* logits;          // [depth, channels, grid.low_height, grid.low_width]
  const std::uint8_t* labels;  // [depth, grid.high_height, grid.high_width]
  std::int64_t depth;
  std::int64_t channels;       // at most 126
  CellGrid grid;               // stride at most kMaxStride
  const std::int64_t* organs;  // [organ_count] channels, ascending
  std::int64_t organ_count;
  double gamma;  // in [0, 1]
  bool per_slice;
  std::uint8_t* overlay;  // [depth, grid.high_height, grid.high_width], written
  std::int64_t* counts;   // [organ_count, 3], written: candidates, selected, kept
};

// Exact: scores are made again in each of a few passes instead of being stored, each time only in the cells whose
// corners say that they matter. The passes count scores by their leading bits, then by the next ones, until the lowest
// selected score is known. Memory: histograms, and the places of the voxels of one slice that tie with that score.
void pseudo_labels_upsampled_cpu(const PseudoLabelsUpsampledArguments& arguments, int threads);

}  // namespace smile_fast
