// The label of a pixel, by a loop over the channels.
#pragma once

#include <cstdint>
#include <limits>

#include "core/upsampled_labels/label_map_upsampled.h"
#include "upsampled_problems.h"

namespace smile_fast::testing {

// A NaN is above nothing, and a tie stays with the lower label.
template <typename Logit>
std::uint8_t label_at(const LabelMapUpsampledArguments& a, std::int64_t image, std::int64_t y, std::int64_t x) {
  double best = a.softmax ? -std::numeric_limits<double>::infinity() : 0.0;
  std::int64_t label = 0;
  for (std::int64_t channel = 0; channel < a.channels; ++channel) {
    const auto* logits =
        static_cast<const Logit*>(a.logits) + (image * a.channels + channel) * a.grid.low_height * a.grid.low_width;
    const double value = value_at(logits, a.grid, y, x);
    if (!(value > best)) continue;
    best = value;
    label = channel + (a.softmax ? 0 : 1);
  }
  return static_cast<std::uint8_t>(label);
}

}  // namespace smile_fast::testing
