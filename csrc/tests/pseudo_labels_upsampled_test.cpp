// pseudo_labels_upsampled_cpu against a stable sort of all candidates: ragged sizes, all dtypes, ties, NaN, threads.
#include "core/upsampled_labels/pseudo_labels_upsampled.h"

#include "check.h"
#include "pseudo_labels_oracle.h"
#include "upsampled_problems.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

template <typename Logit>
void test(std::int64_t depth, std::int64_t channels, const CellGrid& grid, Logits kind, int percent, bool per_slice) {
  const std::vector<Logit> logits = make_logits<Logit>(depth, channels, grid, kind);
  const std::string name = name_of(depth, channels, grid, dtype_of<Logit>, kind) + ", percent " +
                           std::to_string(percent) + (per_slice ? " of a slice" : " of the volume");
  const std::int64_t voxels = depth * grid.high_height * grid.high_width;
  std::mt19937 random(static_cast<std::uint32_t>(voxels));
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(voxels));
  for (std::uint8_t& label : labels) label = random() % 4 ? 0 : static_cast<std::uint8_t>(random());
  std::vector<std::int64_t> organs;
  for (std::int64_t channel = 0; channel < channels; channel += channels > 3 ? channels / 3 : 1)
    organs.push_back(channel);
  const auto organ_count = static_cast<std::int64_t>(organs.size());
  Guarded<std::uint8_t> overlay(voxels);
  Guarded<std::int64_t> counts(3 * organ_count);
  PseudoLabelsUpsampledArguments arguments{dtype_of<Logit>, logits.data(), labels.data(),  depth,
                                           channels,        grid,          organs.data(),  organ_count,
                                           percent / 100.0, per_slice,     overlay.data(), counts.data()};
  pseudo_labels_upsampled_cpu(arguments, 1);
  const PseudoLabels wanted = expected_pseudo_labels<Logit>(arguments, percent);
  check(std::equal(wanted.overlay.begin(), wanted.overlay.end(), overlay.data()), name + ": overlay");
  check(std::equal(wanted.counts.begin(), wanted.counts.end(), counts.data()), name + ": counts");
  check(overlay.canaries_live() && counts.canaries_live(), name + ": canaries");
  if (dtype_of<Logit> != DType::float32) return;  // threads know nothing of dtypes
  for (int threads : {2, 3, 8}) {
    Guarded<std::uint8_t> other_overlay(overlay.size());
    Guarded<std::int64_t> other_counts(counts.size());
    arguments.overlay = other_overlay.data();
    arguments.counts = other_counts.data();
    pseudo_labels_upsampled_cpu(arguments, threads);
    check(other_overlay == overlay && other_counts == counts,
          name + ": other results with threads " + std::to_string(threads));
  }
}

template <typename Logit>
void test_all() {
  for (const Logits kind : kAllLogits) {
    for (const bool per_slice : {false, true}) {
      for (int percent : {0, 7, 33, 100}) {
        test<Logit>(3, 3, cell_grid(27, 35, 8), kind, percent, per_slice);
        test<Logit>(2, 1, cell_grid(10, 37, 16), kind, percent, per_slice);
        for (int stride : {1, 3, 64}) test<Logit>(2, 2, cell_grid(7, 12, stride), kind, percent, per_slice);
      }
      for (std::int64_t channels : {13, 126}) test<Logit>(2, channels, cell_grid(9, 13, 8), kind, 58, per_slice);
    }
    test<Logit>(1, 1, cell_grid(20, 300, 8), kind, 50, false);  // more cells than the widest vector
  }
  for (const CellGrid& grid : {cell_grid(0, 8, 8), cell_grid(8, 0, 8)})
    test<Logit>(2, 3, grid, Logits::constant, 50, false);
  test<Logit>(0, 3, cell_grid(8, 8, 8), Logits::noise, 50, true);
}

}  // namespace

int main() {
  on_every_cpu_capability([] { for_every_dtype([]<typename Logit>() { test_all<Logit>(); }); });
  return finish();
}
