#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/parallel.h"
#include "core/pseudo_labels_upsampled.h"
#include "core/pseudo_labels_upsampled_block.h"
#include "core/targets.h"

namespace smile_fast {
namespace {

constexpr std::int32_t kMaxBins = 2048;
constexpr std::int32_t kAboveAll = 0x7f7fffff;  // the key of infinity: none is above it
// A key's 31 bits, from the leading ones on: exponent and 3 bits of the mantissa, then 10 bits and 10 bits.
constexpr std::array<KeyBins, 3> kPasses = {{{0, 20, kMaxBins}, {0, 10, 1024}, {0, 0, 1024}}};

using LocalHistogram = std::array<std::uint32_t, kMaxBins + 1>;

// ceil(gamma n), where a product within 1e-12 of an integer is that integer: 0.07 of 100 are 7, not 8.
std::int64_t fraction_count(double gamma, std::int64_t count) {
  const double product = std::clamp(gamma, 0.0, 1.0) * static_cast<double>(count);
  const double nearest = std::nearbyint(product);
  const double rounded = std::abs(product - nearest) <= 1e-12 * nearest ? nearest : std::ceil(product);
  return std::min(static_cast<std::int64_t>(rounded), count);
}

// The selection of one organ among the candidates of one segment, which is a range of slices.
class Selection {
 public:
  Selection(const PseudoLabelsUpsampledArguments& arguments, const double* weights, std::int64_t organ,
            std::int64_t begin, std::int64_t end, int threads)
      : a_(arguments),
        weights_(weights),
        channel_(arguments.organs[organ]),
        begin_(begin),
        end_(end),
        threads_(threads),
        candidates_in_(static_cast<std::size_t>(end - begin), 1) {}

  // Find the cuts of the segment's slices, [end - begin]; sets `candidates` and `selected`.
  void find(Cut* cuts) {
    const std::int64_t voxels = a_.grid.height * a_.grid.width;
    std::vector<std::int64_t> histogram = count(kPasses[0]);
    for (std::int32_t bin = 0; bin < kMaxBins; ++bin) candidates += histogram[bin];
    selected = fraction_count(a_.gamma, candidates);
    const Cut nothing{kAboveAll, 0}, everything{0, voxels};
    std::fill_n(cuts, end_ - begin_, selected == 0 ? nothing : everything);
    if (selected == 0 || selected == candidates) return;

    std::int32_t key = 0, bin = 0;
    std::int64_t wanted = selected;  // of the voxels in the ranges that are still looked at
    for (const KeyBins& pass : kPasses) {
      if (pass.shift < kPasses[0].shift) histogram = count({key, pass.shift, pass.bins});
      for (bin = pass.bins - 1; histogram[bin] < wanted; --bin) wanted -= histogram[bin];
      key += bin << pass.shift;
    }
    std::fill_n(cuts, end_ - begin_, Cut{key, voxels});
    if (wanted < histogram[bin]) cut_ties(key, wanted, cuts);
  }

  std::int64_t candidates = 0, selected = 0;

 private:
  // Count the keys of one slice.
  LocalHistogram count_slice(std::int64_t slice, const KeyBins& bins) const {
    LocalHistogram histogram;
    std::fill_n(histogram.begin(), bins.bins + 1, 0u);
    const auto scratch = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(4 * a_.grid.pitch()));
    SMILE_FAST_DISPATCH(count_keys_block)(a_, weights_, slice, channel_, bins, scratch.get(), histogram.data());
    return histogram;
  }

  // Count the keys of the segment, and note in which slices there are any at all.
  std::vector<std::int64_t> count(const KeyBins& bins) {
    std::vector<std::atomic<std::int64_t>> sums(static_cast<std::size_t>(bins.bins));
    parallel_for(end_ - begin_, threads_, [&](std::int64_t item) {
      if (!candidates_in_[item]) return;
      const LocalHistogram histogram = count_slice(begin_ + item, bins);
      std::uint32_t any = 0;
      for (std::int32_t bin = 0; bin < bins.bins; ++bin) {
        any |= histogram[bin];
        if (histogram[bin]) sums[bin].fetch_add(histogram[bin], std::memory_order_relaxed);
      }
      candidates_in_[item] = any != 0;
    });
    return {sums.begin(), sums.end()};
  }

  // Of the voxels with this key only the first `wanted` ones are selected.
  void cut_ties(std::int32_t key, std::int64_t wanted, Cut* cuts) const {
    std::vector<std::int64_t> ties(static_cast<std::size_t>(end_ - begin_));
    parallel_for(end_ - begin_, threads_, [&](std::int64_t item) {
      if (candidates_in_[item]) ties[item] = count_slice(begin_ + item, {key, 0, 1})[0];
    });
    for (std::int64_t item = 0; item < end_ - begin_; ++item) {
      if (wanted == 0) cuts[item].end = 0;
      if (0 < wanted && wanted < ties[item]) cuts[item].end = place_of(begin_ + item, key, ties[item], wanted);
      wanted -= std::min(wanted, ties[item]);
    }
  }

  // The index in the slice of the voxel that has `number` voxels with this key before it.
  std::int64_t place_of(std::int64_t slice, std::int32_t key, std::int64_t ties, std::int64_t number) const {
    std::vector<std::int64_t> places(static_cast<std::size_t>(ties));
    const auto scratch = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(4 * a_.grid.pitch()));
    SMILE_FAST_DISPATCH(find_key_block)(a_, weights_, slice, channel_, key, scratch.get(), places.data());
    std::nth_element(places.begin(), places.begin() + number, places.end());
    return places[static_cast<std::size_t>(number)];
  }

  const PseudoLabelsUpsampledArguments& a_;
  const double* weights_;
  std::int64_t channel_, begin_, end_;
  int threads_;
  std::vector<std::uint8_t> candidates_in_;  // per slice: whether later passes need to look at it
};

// The cuts of all organs and slices, [depth, organ_count]; writes the counts of candidates and of selected voxels.
std::vector<Cut> find_cuts(const PseudoLabelsUpsampledArguments& a, const double* weights, int threads) {
  std::vector<Cut> by_organ(static_cast<std::size_t>(a.organ_count * a.depth));
  std::vector<std::atomic<std::int64_t>> counts(static_cast<std::size_t>(a.organ_count * 2));
  const std::int64_t segments = a.per_slice ? a.depth : 1, slices = a.depth / segments;
  // Many segments are spread over the threads; a single one spreads its slices.
  const int outside = a.per_slice ? threads : 1, inside = a.per_slice ? 1 : threads;
  parallel_for(a.organ_count * segments, outside, [&](std::int64_t item) {
    const std::int64_t organ = item / segments, begin = item % segments * slices;
    Selection selection(a, weights, organ, begin, begin + slices, inside);
    selection.find(&by_organ[organ * a.depth + begin]);
    counts[organ * 2] += selection.candidates;
    counts[organ * 2 + 1] += selection.selected;
  });
  std::vector<Cut> cuts(by_organ.size());
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ) {
    a.counts[organ * 3] = counts[organ * 2];
    a.counts[organ * 3 + 1] = counts[organ * 2 + 1];
    for (std::int64_t slice = 0; slice < a.depth; ++slice)
      cuts[slice * a.organ_count + organ] = by_organ[organ * a.depth + slice];
  }
  return cuts;
}

}  // namespace

void pseudo_labels_upsampled_cpu(const PseudoLabelsUpsampledArguments& a, int threads) {
  std::fill_n(a.counts, a.organ_count * 3, 0);
  if (a.depth * a.grid.height * a.grid.width == 0) return;
  const std::vector<double> weights = corner_weights(a.grid);
  const std::vector<Cut> cuts = find_cuts(a, weights.data(), threads);
  std::vector<std::int64_t> kept(static_cast<std::size_t>(a.depth * a.organ_count));
  OverlayBlock* const block = SMILE_FAST_DISPATCH(overlay_block);
  parallel_for(a.depth, threads, [&](std::int64_t slice) {
    const auto floats = static_cast<std::size_t>((1 + 3 * a.organ_count) * a.grid.pitch());
    const auto scratch = std::make_unique_for_overwrite<float[]>(floats);
    block(a, weights.data(), slice, cuts.data() + slice * a.organ_count, scratch.get(),
          kept.data() + slice * a.organ_count);
  });
  for (std::int64_t slice = 0; slice < a.depth; ++slice)
    for (std::int64_t organ = 0; organ < a.organ_count; ++organ)
      a.counts[organ * 3 + 2] += kept[slice * a.organ_count + organ];
}

}  // namespace smile_fast
