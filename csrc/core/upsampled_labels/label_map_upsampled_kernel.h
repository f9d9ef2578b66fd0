// The inner part of label_map_upsampled_cpu: some rows of cells of one image, one thread.
#pragma once

#include <cstdint>

#include "core/upsampled_labels/label_map_upsampled.h"

namespace smile_fast {

// What the kernel needs beside its arguments.
struct LabelMapScratch {
  float* pairs;               // [channels, 2, pitch] see core/upsampled_labels/cells.h
  float* highest;             // [channels, pitch]
  float* floor;               // [pitch] what a channel must exceed somewhere in the cell, to win a pixel there
  std::int32_t* owner;        // [pitch] the channel whose lowest corner the floor is; -1 if none
  std::uint32_t* candidates;  // [ceil(channels / 32), pitch] bits of the channels that may win a pixel
  std::uint8_t* settled;      // [pitch] the label of all pixels of the cell; 255 if its corners do not decide
};

// Label the cell rows [begin, end) of one image.
using LabelMapUpsampledKernel = void(const LabelMapUpsampledArguments& arguments, const double* weights,
                                     std::int64_t image, std::int64_t begin, std::int64_t end,
                                     const LabelMapScratch& scratch);

namespace plain {
LabelMapUpsampledKernel label_map_upsampled_kernel;
}
namespace avx2 {
LabelMapUpsampledKernel label_map_upsampled_kernel;
}
namespace avx512 {
LabelMapUpsampledKernel label_map_upsampled_kernel;
}

}  // namespace smile_fast
