// pseudo_labels_upsampled_cpu against a stable sort of all candidates, scored in double precision.
#include <algorithm>
#include <vector>

#include "core/upsampled_labels/pseudo_labels_upsampled.h"
#include "fuzz.h"
#include "tests/pseudo_labels_oracle.h"

namespace {

using namespace smile_fast;
using fuzz::Choices;
using fuzz::Exact;

constexpr int kMostChannels = 126;
constexpr int kFewChannels = 5;  // that so many voxels are affordable for
constexpr int kVoxels = 5000, kVoxelsOfMany = 500;

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
  const int percent = choices.byte() % 101;
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
  const Exact<Logit> logits = fuzz::choose_logits<Logit>(choices, depth * channels * grid.low_height * grid.low_width);

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
                                           percent / 100.0,
                                           per_slice,
                                           overlay.data(),
                                           counts.data()};
  pseudo_labels_upsampled_cpu(arguments, 1);
  const testing::PseudoLabels expected = testing::expected_pseudo_labels<Logit>(arguments, percent);
  fuzz::require(std::equal(expected.overlay.begin(), expected.overlay.end(), overlay.data()), "overlay");
  fuzz::require(std::equal(expected.counts.begin(), expected.counts.end(), counts.data()), "counts");
  arguments.overlay = other_overlay.data();
  arguments.counts = other_counts.data();
  pseudo_labels_upsampled_cpu(arguments, threads);
  fuzz::require(fuzz::same_bits(overlay, other_overlay), "another overlay with other threads");
  fuzz::require(fuzz::same_bits(counts, other_counts), "other counts with other threads");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::on_chosen([]<typename T>(Choices& choices) { run<T>(choices); }, data, size);
}
