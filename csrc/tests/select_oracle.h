// What select_top_fraction must select of one segment, by a stable sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace smile_fast::testing {

// The order of the scores: higher first, NaN last; a stable sort keeps ties in the order of their indices.
inline bool ranks_before(float a, float b) { return std::isnan(b) ? !std::isnan(a) : a > b; }

// selection[begin..end) = 1 for the first ceil(numerator * n / denominator) of the n candidates.
inline void select_by_sorting(const std::vector<float>& scores, const std::vector<std::uint8_t>& candidates,
                              std::int64_t begin, std::int64_t end, std::int64_t numerator, std::int64_t denominator,
                              std::vector<std::uint8_t>& selection) {
  std::vector<std::int64_t> ranked;
  for (std::int64_t voxel = begin; voxel < end; ++voxel)
    if (candidates[voxel] != 0) ranked.push_back(voxel);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](std::int64_t a, std::int64_t b) { return ranks_before(scores[a], scores[b]); });
  const auto count = static_cast<std::int64_t>(ranked.size());
  ranked.resize((numerator * count + denominator - 1) / denominator);
  for (const std::int64_t voxel : ranked) selection[voxel] = 1;
}

}  // namespace smile_fast::testing
