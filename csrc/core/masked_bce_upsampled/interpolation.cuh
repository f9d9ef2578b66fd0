// Linear interpolation along one axis, by the rule of torch.nn.functional.interpolate with align_corners=False, cell by
// cell.
//
// Element x of the output reads the input at src = (x + 1/2) in / out - 1/2. Cell c holds the x with floor(src) = c,
// from -1, left of the first input element, to in - 1, right of the last one. As a quotient of integers, src is exact:
// 4 in out must stay below 2^63.
#pragma once

#include "core/common/cuda_kernel.cuh"

namespace smile_fast::cuda {

struct Axis {
  std::int64_t input, output;

  // The first output element of a cell, or of a later one if it has none.
  __device__ __forceinline__ std::int64_t begin(std::int64_t cell) const {
    if (cell < 0) return 0;
    if (cell >= input) return output;
    const std::int64_t x = (2 * output * cell + output - input + 2 * input - 1) / (2 * input);  // rounded up
    return x < 0 ? 0 : x < output ? x : output;
  }
  __device__ __forceinline__ std::int64_t cell(std::int64_t x) const {
    const std::int64_t position = (2 * x + 1) * input - output;  // src in units of 1 / (2 output)
    return position < 0 ? -1 : position / (2 * output);
  }
  // The input elements that a cell reads, with weights 1 - t and t.
  __device__ __forceinline__ std::int64_t left(std::int64_t cell) const { return cell < 0 ? 0 : cell; }
  __device__ __forceinline__ std::int64_t right(std::int64_t cell) const {
    const std::int64_t low = left(cell);
    return input == output || low + 1 >= input ? low : low + 1;
  }
  __device__ __forceinline__ float weight(std::int64_t x, std::int64_t cell) const {
    if (cell < 0 || cell >= input - 1) return 0.0f;
    const std::int64_t rest = (2 * x + 1) * input - output - 2 * output * cell;
    return static_cast<float>(static_cast<double>(rest) * reciprocal);
  }
  double reciprocal;  // 1 / (2 output)
};

inline Axis axis(std::int64_t input, std::int64_t output) {
  return {input, output, output > 0 ? 0.5 / static_cast<double>(output) : 0.0};
}

}  // namespace smile_fast::cuda
