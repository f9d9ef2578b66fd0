// label_map_upsampled: from low-resolution logits to a label map, without a full-resolution logit.
//
// Sigmoid: the channel with the highest interpolated logit above 0, as label channel + 1; 0 where there is none.
// Softmax: the channel with the highest interpolated logit. Ties go to the lowest label; a NaN is never above anything.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"
#include "core/upsampled_labels/cell_grid.h"

namespace smile_fast {

struct LabelMapUpsampledArguments {
  DType dtype;
  const void* logits;  // [images, channels, grid.low_height, grid.low_width]
  std::int64_t images;
  std::int64_t channels;  // at most 127
  CellGrid grid;          // stride at most kMaxStride
  bool softmax;
  std::uint8_t* labels;  // [images, grid.high_height, grid.high_width], written
};

// Decides in double precision, see core/upsampled_labels/cell_grid.h. A cell between four low pixels whose corners
// already decide is not interpolated; where they do not, only the channels that may still win are.
void label_map_upsampled_cpu(const LabelMapUpsampledArguments& arguments, int threads);

}  // namespace smile_fast
