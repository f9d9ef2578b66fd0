// Linear interpolation along one axis, by the rule of torch.nn.functional.interpolate with align_corners=False.
#pragma once

#include <cstdint>

#include "core/common/cpu_capability.h"

namespace smile_fast {

// What an element of the high grid reads: (1 - weight) of element `low` and `weight` of element `next` of the low grid.
struct Source {
  std::int64_t low;
  std::int64_t next;  // low + 1; low itself at the upper border and where nothing is resized
  float weight;
};

// src = (i + 1/2) low_size / high_size - 1/2, clamped to [0, low_size - 1]. As a quotient of integers, nothing is
// rounded but the weight: 2 low_size high_size must stay below 2^63.
SMILE_FAST_INLINE Source source_of(std::int64_t i, std::int64_t low_size, std::int64_t high_size) {
  if (low_size == high_size) return {i, i, 0.0f};
  const std::int64_t position = (2 * i + 1) * low_size - high_size;  // src in units of 1 / (2 high_size)
  if (position <= 0) return {0, low_size > 1 ? 1 : 0, 0.0f};
  const std::int64_t low = position / (2 * high_size);
  if (low >= low_size - 1) return {low_size - 1, low_size - 1, 0.0f};
  const double weight = static_cast<double>(position % (2 * high_size)) / static_cast<double>(2 * high_size);
  return {low, low + 1, static_cast<float>(weight)};
}

}  // namespace smile_fast
