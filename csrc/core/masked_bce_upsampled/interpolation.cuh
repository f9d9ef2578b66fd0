// Linear interpolation along one axis, by the rule of torch.nn.functional.interpolate with align_corners=False, cell by
// cell.
//
// Element x of the high grid reads the low grid at src = (x + 1/2) low / high - 1/2. Cell c holds the x with
// floor(src) = c, from -1, left of the first low element, to low - 1, right of the last one. As a quotient of integers,
// src is exact: 4 low high must stay below 2^63.
#pragma once

#include "core/common/cuda_kernel.cuh"

namespace smile_fast::cuda {

struct Axis {
  std::int64_t low, high;  // sizes

  // The first high element of a cell, or of a later one if it has none.
  __device__ __forceinline__ std::int64_t begin(std::int64_t cell) const {
    if (cell < 0) return 0;
    if (cell >= low) return high;
    const std::int64_t x = (2 * high * cell + high - low + 2 * low - 1) / (2 * low);  // rounded up
    return x < 0 ? 0 : x < high ? x : high;
  }
  __device__ __forceinline__ std::int64_t cell(std::int64_t x) const {
    const std::int64_t position = (2 * x + 1) * low - high;  // src in units of 1 / (2 high)
    return position < 0 ? -1 : position / (2 * high);
  }
  // The low elements that a cell reads, with weights 1 - t and t.
  __device__ __forceinline__ std::int64_t left(std::int64_t cell) const { return cell < 0 ? 0 : cell; }
  __device__ __forceinline__ std::int64_t right(std::int64_t cell) const {
    const std::int64_t first = left(cell);
    return low == high || first + 1 >= low ? first : first + 1;
  }
  __device__ __forceinline__ float weight(std::int64_t x, std::int64_t cell) const {
    if (cell < 0 || cell >= low - 1) return 0.0f;
    const std::int64_t rest = (2 * x + 1) * low - high - 2 * high * cell;
    return static_cast<float>(static_cast<double>(rest) * reciprocal);
  }
  double reciprocal;  // 1 / (2 high)
};

inline Axis axis(std::int64_t low, std::int64_t high) {
  return {low, high, high > 0 ? 0.5 / static_cast<double>(high) : 0.0};
}

}  // namespace smile_fast::cuda
