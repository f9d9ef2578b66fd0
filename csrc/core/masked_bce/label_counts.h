// How many voxels of each organ are known: a histogram of the labels, then one look at the table. And the loss over
// them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace smile_fast {

constexpr std::int64_t kLabelValues = 256;
constexpr std::int64_t kWordBits = 32;  // organs per word of a supervision table

// counts: [batch, organs], written; labels: [batch, voxels]; table: [batch, 256, 2, ceil(organs / 32)].
void count_known(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t batch, std::int64_t organs,
                 std::int64_t voxels, std::int64_t* counts, int threads);

// By what a mean is divided: the known pairs [channels], or 1 if there are none.
inline std::int64_t known_pairs(const std::int64_t* counts, std::int64_t channels) {
  std::int64_t known = 0;
  for (std::int64_t channel = 0; channel < channels; ++channel) known += counts[channel];
  return std::max<std::int64_t>(known, 1);
}

// The loss of all channels.
inline float reduced_loss(const double* sums, std::int64_t channels, std::int64_t divisor) {
  double loss = 0.0;
  for (std::int64_t channel = 0; channel < channels; ++channel) loss += sums[channel];
  return static_cast<float>(loss / static_cast<double>(divisor));
}

}  // namespace smile_fast
