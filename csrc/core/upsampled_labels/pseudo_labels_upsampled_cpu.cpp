#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/common/cpu_capability.h"
#include "core/common/fraction_count.h"
#include "core/common/parallel.h"
#include "core/upsampled_labels/pseudo_labels_upsampled.h"
#include "core/upsampled_labels/pseudo_labels_upsampled_kernel.h"

namespace smile_fast {
namespace {

constexpr std::int32_t kMaxBins = 2048;
constexpr std::int32_t kAboveAll = 0x7f7fffff;  // the key of infinity: none is above it
// A key's 31 bits, from the leading ones on: exponent and 3 bits of the mantissa, then 10 bits and 10 bits.
constexpr std::array<KeyBins, 3> kPasses = {{{0, 20, kMaxBins}, {0, 10, 1024}, {0, 0, 1024}}};

using LocalHistogram = std::array<std::uint32_t, kMaxBins + 1>;

// The selection of one organ among the candidates of one segment, which is a range of slices. In every pass each slice
// is counted, and then the range of keys is narrowed to that of the lowest selected one; then its ties are counted.
class Selection {
 public:
  Selection(const PseudoLabelsUpsampledArguments& arguments, const double* weights, std::int64_t organ,
            std::int64_t begin, std::int64_t end)
      : a_(arguments),
        weights_(weights),
        channel_(arguments.organs[organ]),
        begin_(begin),
        slices_(static_cast<std::size_t>(end - begin), {1, 0}),
        histogram_(kMaxBins) {}

  // Count the keys of a slice, and note whether there are any at all. Slices may be counted at the same time.
  void count(std::int64_t item) {
    Slice& slice = slices_[item];
    if (!slice.look) return;
    const LocalHistogram counts = counted(item, bins());
    std::uint32_t any = 0;
    for (std::int32_t bin = 0; bin < bins().bins; ++bin) {
      any |= counts[bin];
      if (counts[bin]) histogram_[bin].fetch_add(counts[bin], std::memory_order_relaxed);
    }
    slice.look = any != 0;
  }

  // After a pass over all slices.
  void narrow() {
    if (pass_ == 0) {
      for (const auto& count : histogram_) candidates += count;
      selected = wanted_ = fraction_count(a_.gamma, candidates);
    }
    std::int32_t bin = bins().bins - 1;
    if (selected == 0 || selected == candidates) {
      for (Slice& slice : slices_) slice.look = 0;
    } else {
      for (; histogram_[bin] < wanted_; --bin) wanted_ -= histogram_[bin];
      key_ += bin << bins().shift;
      if (last() && wanted_ == histogram_[bin])
        for (Slice& slice : slices_) slice.look = 0;
    }
    for (auto& count : histogram_) count.store(0, std::memory_order_relaxed);
    ++pass_;
  }

  // After the last pass: count the slice's voxels with the lowest selected key, if not all of the volume's are
  // selected.
  void count_ties(std::int64_t item) {
    if (slices_[item].look) slices_[item].ties = counted(item, {key_, 0, 1})[0];
  }

  // The cuts of the segment's slices, `step` apart.
  void cut(Cut* cuts, std::int64_t step) const {
    const std::int64_t voxels = a_.grid.high_height * a_.grid.high_width;
    std::int64_t wanted = wanted_;
    for (std::size_t item = 0; item < slices_.size(); ++item) {
      Cut& cut = cuts[static_cast<std::int64_t>(item) * step];
      const std::int64_t ties = slices_[item].ties;
      cut = selected == 0 ? Cut{kAboveAll, 0} : selected == candidates ? Cut{0, voxels} : Cut{key_, voxels};
      if (wanted == 0) cut.end = 0;
      if (0 < wanted && wanted < ties) cut.end = place_of(begin_ + static_cast<std::int64_t>(item), ties, wanted);
      wanted -= std::min(wanted, ties);
    }
  }

  std::int64_t candidates = 0, selected = 0;

 private:
  struct Slice {
    std::uint8_t look;  // whether later passes need to
    std::int64_t ties;
  };

  bool last() const { return pass_ + 1 == kPasses.size(); }
  KeyBins bins() const { return {key_, kPasses[pass_].shift, kPasses[pass_].bins}; }

  LocalHistogram counted(std::int64_t item, const KeyBins& bins) const {
    LocalHistogram histogram;
    std::fill_n(histogram.begin(), bins.bins + 1, 0u);
    const auto scratch = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(4 * a_.grid.pitch()));
    CountKeysKernel* const kernel = SMILE_FAST_DISPATCH(count_keys_kernel);
    kernel(a_, weights_, begin_ + item, channel_, bins, scratch.get(), histogram.data());
    return histogram;
  }

  // The index in the slice of the voxel that has `number` voxels with the lowest selected key before it.
  std::int64_t place_of(std::int64_t slice, std::int64_t ties, std::int64_t number) const {
    std::vector<std::int64_t> places(static_cast<std::size_t>(ties));
    const auto scratch = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(4 * a_.grid.pitch()));
    SMILE_FAST_DISPATCH(find_key_kernel)(a_, weights_, slice, channel_, key_, scratch.get(), places.data());
    std::nth_element(places.begin(), places.begin() + number, places.end());
    return places[static_cast<std::size_t>(number)];
  }

  const PseudoLabelsUpsampledArguments& a_;
  const double* weights_;
  std::int64_t channel_, begin_;
  std::vector<Slice> slices_;
  std::vector<std::atomic<std::int64_t>> histogram_;
  std::size_t pass_ = 0;
  std::int32_t key_ = 0;     // the lowest selected one is at least this
  std::int64_t wanted_ = 0;  // of the voxels in the range that is still looked at
};

// Find the lowest selected key of every selection, and its ties. All of them have as many slices.
void search(std::vector<Selection>& selections, std::int64_t slices, int threads) {
  const auto in_every_slice = [&](void (Selection::*step)(std::int64_t item)) {
    parallel_for(static_cast<std::int64_t>(selections.size()) * slices, threads,
                 [&](std::int64_t item) { (selections[item / slices].*step)(item % slices); });
  };
  for (std::size_t pass = 0; pass < kPasses.size(); ++pass) {
    in_every_slice(&Selection::count);
    for (Selection& selection : selections) selection.narrow();
  }
  in_every_slice(&Selection::count_ties);
}

// The cuts of all organs and slices, [depth, organ_count]; writes the counts of candidates and of selected voxels.
std::vector<Cut> find_cuts(const PseudoLabelsUpsampledArguments& a, const double* weights, int threads) {
  std::vector<Cut> cuts(static_cast<std::size_t>(a.depth * a.organ_count));
  std::vector<std::atomic<std::int64_t>> counts(static_cast<std::size_t>(a.organ_count * 2));
  const auto finish = [&](const Selection& selection, std::int64_t organ, std::int64_t slice) {
    selection.cut(&cuts[slice * a.organ_count + organ], a.organ_count);
    counts[organ * 2] += selection.candidates;
    counts[organ * 2 + 1] += selection.selected;
  };
  if (a.per_slice) {  // many small segments: each one for one thread
    parallel_for(a.organ_count * a.depth, threads, [&](std::int64_t item) {
      const std::int64_t organ = item % a.organ_count, slice = item / a.organ_count;
      std::vector<Selection> one;
      one.emplace_back(a, weights, organ, slice, slice + 1);
      search(one, 1, 1);
      finish(one[0], organ, slice);
    });
  } else {  // all organs at once: threads have to meet as rarely as they can
    std::vector<Selection> selections;
    for (std::int64_t organ = 0; organ < a.organ_count; ++organ) selections.emplace_back(a, weights, organ, 0, a.depth);
    search(selections, a.depth, threads);
    for (std::int64_t organ = 0; organ < a.organ_count; ++organ) finish(selections[organ], organ, 0);
  }
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ)
    for (int which : {0, 1}) a.counts[organ * 3 + which] = counts[organ * 2 + which];
  return cuts;
}

}  // namespace

void pseudo_labels_upsampled_cpu(const PseudoLabelsUpsampledArguments& a, int threads) {
  std::fill_n(a.counts, a.organ_count * 3, 0);
  if (a.depth * a.grid.high_height * a.grid.high_width == 0) return;
  const std::vector<double> weights = corner_weights(a.grid);
  const std::vector<Cut> cuts = find_cuts(a, weights.data(), threads);
  std::vector<std::int64_t> kept(static_cast<std::size_t>(a.depth * a.organ_count));
  OverlayKernel* const kernel = SMILE_FAST_DISPATCH(overlay_kernel);
  parallel_for(a.depth, threads, [&](std::int64_t slice) {
    const auto floats = static_cast<std::size_t>((1 + 3 * a.organ_count) * a.grid.pitch());
    const auto scratch = std::make_unique_for_overwrite<float[]>(floats);
    kernel(a, weights.data(), slice, cuts.data() + slice * a.organ_count, scratch.get(),
           kept.data() + slice * a.organ_count);
  });
  for (std::int64_t slice = 0; slice < a.depth; ++slice)
    for (std::int64_t organ = 0; organ < a.organ_count; ++organ)
      a.counts[organ * 3 + 2] += kept[slice * a.organ_count + organ];
}

}  // namespace smile_fast
