// Linear interpolation along one axis, by the rule of torch.nn.functional.interpolate with align_corners=False.
#pragma once

#include <cstdint>

#include "core/common/cpu_capability.h"

namespace smile_fast {

// What an output element reads: (1 - weight) of element `low` and `weight` of element `next` of the input.
struct Source {
  std::int64_t low;
  std::int64_t next;  // low + 1; low itself at the upper border and where nothing is resized
  float weight;
};

// src = (i + 1/2) input / output - 1/2, clamped to [0, input - 1]. As a quotient of integers, nothing is rounded but
// the weight: 2 input output must stay below 2^63.
SMILE_FAST_INLINE Source source_of(std::int64_t i, std::int64_t input, std::int64_t output) {
  if (input == output) return {i, i, 0.0f};
  const std::int64_t position = (2 * i + 1) * input - output;  // src in units of 1 / (2 output)
  if (position <= 0) return {0, input > 1 ? 1 : 0, 0.0f};
  const std::int64_t low = position / (2 * output);
  if (low >= input - 1) return {input - 1, input - 1, 0.0f};
  const double weight = static_cast<double>(position % (2 * output)) / static_cast<double>(2 * output);
  return {low, low + 1, static_cast<float>(weight)};
}

}  // namespace smile_fast
