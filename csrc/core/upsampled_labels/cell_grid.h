// How an image lies over the low pixels of its logits: cells between four low pixels, of stride x stride
// pixels.
//
// Pixel i of an axis lies at (i + 0.5) / stride - 0.5 of the low pixels' centres. Cell c holds the pixels between
// low pixels c - 1 and c, so there is one cell more than low pixels on an axis; outside of the first and the
// last low pixel, the border repeats.
//
// All weights are scaled by (2 stride)^2, which makes them integers: the product of a weight and a float32 is then
// exact in double precision, so that fused multiply-add changes nothing, and a sum of the four corners in a fixed order
// has the same bits on every capability. Rounding is monotonous: an interpolated value never leaves the range of its
// corners times (2 stride)^2.
#pragma once

#include <cstdint>
#include <vector>

#include "core/common/cpu_capability.h"

namespace smile_fast {

constexpr int kMaxStride = 64;      // weights have 2 * 7 bits, so products have 38 of the 53 there are
constexpr int kPatchMultiple = 64;  // patches are padded to as many pixels as any capability works on at once
constexpr int kRowMultiple = 16;    // rows of cells are padded to the widest vectors

struct CellGrid {
  std::int64_t high_height, high_width;  // of the image
  std::int64_t low_height, low_width;    // of the logits: ceil(high_height / stride), ceil(high_width / stride)
  int stride;

  SMILE_FAST_INLINE std::int64_t cell_rows() const { return low_height + 1; }
  SMILE_FAST_INLINE std::int64_t cells() const { return low_width + 1; }  // of a row of cells
  // Elements of a row of cells, padded to the widest vectors.
  SMILE_FAST_INLINE std::int64_t pitch() const { return (cells() + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }
  // Pixels of a patch, which is what one cell covers; and padded.
  SMILE_FAST_INLINE std::uint32_t pixels() const { return static_cast<std::uint32_t>(stride) * stride; }
  SMILE_FAST_INLINE std::int64_t patch() const {
    return (pixels() + kPatchMultiple - 1) / kPatchMultiple * kPatchMultiple;
  }
  // The first pixel of a cell; negative for cell 0.
  SMILE_FAST_INLINE std::int64_t first_pixel(std::int64_t cell) const { return (cell - 1) * stride + stride / 2; }
};

SMILE_FAST_INLINE CellGrid cell_grid(std::int64_t height, std::int64_t width, int stride) {
  return {height, width, (height + stride - 1) / stride, (width + stride - 1) / stride, stride};
}

// Weights of the corners at every pixel of a patch, row by row: [4, patch()], corners as top left, top right, bottom
// left, bottom right.
std::vector<double> corner_weights(const CellGrid& grid);

}  // namespace smile_fast
