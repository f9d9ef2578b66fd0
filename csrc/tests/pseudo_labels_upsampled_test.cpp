// pseudo_labels_upsampled_cpu against a stable sort of all candidates: ragged sizes, all dtypes, ties, NaN, threads.
#include "core/pseudo_labels_upsampled.h"

#include "check.h"
#include "core/targets.h"
#include "upsampled_problems.h"

namespace {

using smile_fast::BFloat16;
using smile_fast::CellGrid;
using smile_fast::DType;
using smile_fast::Float16;
using smile_fast::kPseudoBit;
using smile_fast::PseudoLabelsUpsampledArguments;
using smile_fast::Target;
using smile_fast::testing::check;
using smile_fast::testing::dtype_of;
using smile_fast::testing::Guarded;
using smile_fast::testing::Logits;

struct Expected {
  std::vector<std::uint8_t> overlay;
  std::vector<std::int64_t> counts;
};

// The definition: sort the candidates of each segment, take the first ones, and let the organs compete.
template <typename Logit>
Expected expected(const PseudoLabelsUpsampledArguments& a, int percent) {
  const std::int64_t plane = a.grid.height * a.grid.width, segment = a.per_slice ? plane : plane * a.depth;
  Expected result{std::vector<std::uint8_t>(plane * a.depth), std::vector<std::int64_t>(3 * a.organ_count)};
  std::vector<float> best(result.overlay.size(), -1.0f), scores(result.overlay.size());
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ) {
    for (std::int64_t voxel = 0; voxel < plane * a.depth; ++voxel) {
      const auto* logits = static_cast<const Logit*>(a.logits) +
                           (voxel / plane * a.channels + a.organs[organ]) * a.grid.rows * a.grid.columns;
      const std::int64_t pixel = voxel % plane;
      const double unit = 1.0 / (4.0 * a.grid.stride * a.grid.stride);
      scores[voxel] = static_cast<float>(
          smile_fast::testing::value_at(logits, a.grid, pixel / a.grid.width, pixel % a.grid.width) * unit);
    }
    for (std::int64_t begin = 0; segment > 0 && begin < plane * a.depth; begin += segment) {
      std::vector<std::int64_t> candidates;
      for (std::int64_t voxel = begin; voxel < begin + segment; ++voxel)
        if (a.labels[voxel] == 0 && scores[voxel] > 0.0f) candidates.push_back(voxel);
      std::stable_sort(candidates.begin(), candidates.end(),
                       [&](std::int64_t one, std::int64_t other) { return scores[one] > scores[other]; });
      const auto count = static_cast<std::int64_t>(candidates.size());
      const std::int64_t selected = (count * percent + 99) / 100;
      result.counts[organ * 3] += count;
      result.counts[organ * 3 + 1] += selected;
      for (std::int64_t rank = 0; rank < selected; ++rank) {
        const std::int64_t voxel = candidates[rank];
        if (scores[voxel] <= best[voxel]) continue;
        best[voxel] = scores[voxel];
        result.overlay[voxel] = static_cast<std::uint8_t>(kPseudoBit | (a.organs[organ] + 1));
      }
    }
  }
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ)
    result.counts[organ * 3 + 2] = std::count(result.overlay.begin(), result.overlay.end(),
                                              static_cast<std::uint8_t>(kPseudoBit | (a.organs[organ] + 1)));
  return result;
}

template <typename Logit>
void test(std::int64_t depth, std::int64_t channels, const CellGrid& grid, Logits kind, int percent, bool per_slice) {
  const std::vector<Logit> logits = smile_fast::testing::make_logits<Logit>(depth, channels, grid, kind);
  const std::string name = smile_fast::testing::name_of(depth, channels, grid, dtype_of<Logit>, kind) + ", percent " +
                           std::to_string(percent) + (per_slice ? " of a slice" : " of the volume");
  const std::int64_t voxels = depth * grid.height * grid.width;
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
  smile_fast::pseudo_labels_upsampled_cpu(arguments, 1);
  const Expected wanted = expected<Logit>(arguments, percent);
  check(std::equal(wanted.overlay.begin(), wanted.overlay.end(), overlay.data()), name + ": overlay");
  check(std::equal(wanted.counts.begin(), wanted.counts.end(), counts.data()), name + ": counts");
  check(overlay.canaries_live() && counts.canaries_live(), name + ": canaries");
  if (dtype_of<Logit> != DType::float32) return;  // threads know nothing of dtypes
  for (int threads : {2, 3, 8}) {
    Guarded<std::uint8_t> other_overlay(overlay.size);
    Guarded<std::int64_t> other_counts(counts.size);
    arguments.overlay = other_overlay.data();
    arguments.counts = other_counts.data();
    smile_fast::pseudo_labels_upsampled_cpu(arguments, threads);
    check(other_overlay == overlay && other_counts == counts,
          name + ": other results with threads " + std::to_string(threads));
  }
}

template <typename Logit>
void test_all() {
  using smile_fast::cell_grid;
  for (const Logits kind : smile_fast::testing::kAllLogits) {
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
  for (const Target target : {Target::plain, Target::avx2, Target::avx512}) {
    if (!smile_fast::runs(target)) continue;
    smile_fast::use_target(target);
    test_all<float>();
    test_all<BFloat16>();
    test_all<Float16>();
  }
  return smile_fast::testing::finish();
}
