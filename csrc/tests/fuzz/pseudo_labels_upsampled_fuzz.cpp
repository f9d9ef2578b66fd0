// pseudo_labels_upsampled_cpu against a stable sort of all candidates, scored in double precision.
#include <algorithm>
#include <limits>
#include <vector>

#include "core/pseudo_labels_upsampled.h"
#include "fuzz.h"
#include "tests/select_oracle.h"
#include "tests/upsampled_problems.h"

namespace {

using namespace smile_fast;
using fuzz::Choices;
using fuzz::Exact;

constexpr int kMostChannels = 126;
constexpr int kFewChannels = 5;  // that so many voxels are affordable for
constexpr int kVoxels = 5000, kVoxelsOfMany = 500;
constexpr int kPercent = 100;

template <typename Logit>
std::vector<float> scores_of(const PseudoLabelsUpsampledArguments& a, std::int64_t organ) {
  const double unit = 1.0 / (4.0 * a.grid.stride * a.grid.stride);
  std::vector<float> scores;
  for (std::int64_t slice = 0; slice < a.depth; ++slice) {
    const auto* plane =
        static_cast<const Logit*>(a.logits) + (slice * a.channels + a.organs[organ]) * a.grid.rows * a.grid.columns;
    for (std::int64_t y = 0; y < a.grid.height; ++y)
      for (std::int64_t x = 0; x < a.grid.width; ++x)
        scores.push_back(static_cast<float>(testing::value_at(plane, a.grid, y, x) * unit));
  }
  return scores;
}

std::uint8_t code_of(const PseudoLabelsUpsampledArguments& a, std::int64_t organ) {
  return static_cast<std::uint8_t>(kPseudoBit | (a.organs[organ] + 1));
}

// The definition: organ by organ the first ones of each segment's sorted candidates, which then compete.
template <typename Logit>
void check(const PseudoLabelsUpsampledArguments& a, std::int64_t percent) {
  const std::int64_t slice = a.grid.height * a.grid.width, voxels = a.depth * slice;
  const std::int64_t segment = std::max<std::int64_t>(a.per_slice ? slice : voxels, 1);
  std::vector<float> best(voxels, -std::numeric_limits<float>::infinity());
  std::vector<std::uint8_t> overlay(voxels);
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ) {
    const std::vector<float> scores = scores_of<Logit>(a, organ);
    std::vector<std::uint8_t> candidates(voxels), selection(voxels);
    for (std::int64_t voxel = 0; voxel < voxels; ++voxel)
      candidates[voxel] = a.labels[voxel] == 0 && scores[voxel] > 0.0f;
    for (std::int64_t begin = 0; begin < voxels; begin += segment)
      testing::select_by_sorting(scores, candidates, begin, begin + segment, percent, kPercent, selection);
    for (std::int64_t voxel = 0; voxel < voxels; ++voxel) {
      if (selection[voxel] == 0 || !(scores[voxel] > best[voxel])) continue;
      best[voxel] = scores[voxel];
      overlay[voxel] = code_of(a, organ);
    }
    fuzz::require(a.counts[organ * 3] == std::count(candidates.begin(), candidates.end(), 1), "candidates");
    fuzz::require(a.counts[organ * 3 + 1] == std::count(selection.begin(), selection.end(), 1), "selected");
  }
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ)
    fuzz::require(a.counts[organ * 3 + 2] == std::count(overlay.begin(), overlay.end(), code_of(a, organ)), "kept");
  fuzz::require(std::equal(overlay.begin(), overlay.end(), a.overlay), "overlay");
}

template <typename Logit>
void run(Choices& choices) {
  const std::int64_t depth = choices.byte() % 5;
  const int channels = choices.byte() % 8 == 0 ? 1 + choices.byte() % kMostChannels : 1 + choices.byte() % kFewChannels;
  const int stride = 1 + choices.byte() % kMaxStride;
  const int width = choices.up_to(200);
  const int voxels = channels > kFewChannels ? kVoxelsOfMany : kVoxels;
  const int height = choices.up_to(voxels / static_cast<int>((width + 1) * (depth + 1)));
  const CellGrid grid = cell_grid(height, width, stride);
  const bool per_slice = choices.byte() % 2 != 0;
  const int percent = choices.byte() % (kPercent + 1);
  const int threads = 1 + choices.byte() % 3;

  fuzz::Filler filler(choices.word());
  const std::uint32_t left_out = choices.byte() % 4;  // of four channels
  std::vector<std::int64_t> wanted;
  for (std::int64_t channel = 0; channel < channels; ++channel)
    if (filler.next() % 4 >= left_out) wanted.push_back(channel);
  const Exact<std::int64_t> organs(wanted.size());
  std::copy(wanted.begin(), wanted.end(), organs.data());
  const std::uint32_t kinds = 1 + choices.byte() % 4, run_length = 1 + choices.up_to(100);
  const Exact<std::uint8_t> labels = fuzz::choose_labels(filler, depth * height * width, kinds, run_length);
  const Exact<Logit> logits = fuzz::choose_logits<Logit>(choices, depth * channels * grid.rows * grid.columns);

  const Exact<std::uint8_t> overlay(labels.size()), other_overlay(labels.size());
  const Exact<std::int64_t> counts(3 * organs.size()), other_counts(3 * organs.size());
  PseudoLabelsUpsampledArguments arguments{testing::dtype_of<Logit>,
                                           logits.data(),
                                           labels.data(),
                                           depth,
                                           channels,
                                           grid,
                                           organs.data(),
                                           static_cast<std::int64_t>(organs.size()),
                                           static_cast<double>(percent) / kPercent,
                                           per_slice,
                                           overlay.data(),
                                           counts.data()};
  pseudo_labels_upsampled_cpu(arguments, 1);
  check<Logit>(arguments, percent);
  arguments.overlay = other_overlay.data();
  arguments.counts = other_counts.data();
  pseudo_labels_upsampled_cpu(arguments, threads);
  fuzz::require(fuzz::same_bits(overlay, other_overlay), "another overlay with other threads");
  fuzz::require(fuzz::same_bits(counts, other_counts), "other counts with other threads");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choices(data, size);
  fuzz::choose_target(choices.byte());
  const int dtype = choices.byte() % 3;
  if (dtype == 0) run<float>(choices);
  if (dtype == 1) run<BFloat16>(choices);
  if (dtype == 2) run<Float16>(choices);
  return 0;
}
