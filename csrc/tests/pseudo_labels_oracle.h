// A relabelling round of one case by the definition: sort the candidates of each segment, take the first ones, and let
// the organs compete.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/upsampled_labels/pseudo_labels_upsampled.h"
#include "select_oracle.h"
#include "upsampled_problems.h"

namespace smile_fast::testing {

struct PseudoLabels {
  std::vector<std::uint8_t> overlay;
  std::vector<std::int64_t> counts;
};

template <typename Logit>
std::vector<float> scores_of(const PseudoLabelsUpsampledArguments& a, std::int64_t organ) {
  const double unit = 1.0 / (4.0 * a.grid.stride * a.grid.stride);
  std::vector<float> scores;
  for (std::int64_t slice = 0; slice < a.depth; ++slice) {
    const auto* logits = static_cast<const Logit*>(a.logits) +
                         (slice * a.channels + a.organs[organ]) * a.grid.low_height * a.grid.low_width;
    for (std::int64_t y = 0; y < a.grid.high_height; ++y)
      for (std::int64_t x = 0; x < a.grid.high_width; ++x)
        scores.push_back(static_cast<float>(value_at(logits, a.grid, y, x) * unit));
  }
  return scores;
}

// The results for gamma = percent / 100.
template <typename Logit>
PseudoLabels expected_pseudo_labels(const PseudoLabelsUpsampledArguments& a, std::int64_t percent) {
  const std::int64_t slice = a.grid.high_height * a.grid.high_width, voxels = a.depth * slice;
  const std::int64_t segment = std::max<std::int64_t>(a.per_slice ? slice : voxels, 1);
  PseudoLabels result{std::vector<std::uint8_t>(voxels), {}};
  std::vector<float> best(voxels, -std::numeric_limits<float>::infinity());
  const auto code_of = [&](std::int64_t organ) {
    return static_cast<std::uint8_t>(kPseudoBit | (a.organs[organ] + 1));
  };
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ) {
    const std::vector<float> scores = scores_of<Logit>(a, organ);
    std::vector<std::uint8_t> candidates(voxels), selection(voxels);
    for (std::int64_t voxel = 0; voxel < voxels; ++voxel)
      candidates[voxel] = a.labels[voxel] == 0 && scores[voxel] > 0.0f;
    for (std::int64_t begin = 0; begin < voxels; begin += segment)
      select_by_sorting(scores, candidates, begin, begin + segment, percent, 100, selection);
    for (std::int64_t voxel = 0; voxel < voxels; ++voxel) {
      if (selection[voxel] == 0 || !(scores[voxel] > best[voxel])) continue;
      best[voxel] = scores[voxel];
      result.overlay[voxel] = code_of(organ);
    }
    result.counts.push_back(std::count(candidates.begin(), candidates.end(), 1));
    result.counts.push_back(std::count(selection.begin(), selection.end(), 1));
    result.counts.push_back(0);
  }
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ)
    result.counts[organ * 3 + 2] = std::count(result.overlay.begin(), result.overlay.end(), code_of(organ));
  return result;
}

}  // namespace smile_fast::testing
