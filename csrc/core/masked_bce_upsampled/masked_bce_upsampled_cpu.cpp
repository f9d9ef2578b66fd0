#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/common/cpu_capability.h"
#include "core/common/parallel.h"
#include "core/masked_bce/label_counts.h"
#include "core/masked_bce/masked_bce.h"
#include "core/masked_bce/scale_gradient.h"
#include "core/masked_bce_upsampled/interpolation.h"
#include "core/masked_bce_upsampled/masked_bce_upsampled.h"
#include "core/masked_bce_upsampled/masked_bce_upsampled_kernel.h"
#include "core/masked_bce_upsampled/upsampled_columns.h"

namespace smile_fast {
namespace {

// Bands meet in slices that both write, in float32, to memory of their own. This much of a full-resolution tensor of
// logits may go there.
constexpr double kBorderShare = 0.005;
constexpr std::int64_t kItems = 8;  // where there are fewer bands, organs are handed out apart

std::int64_t bands_of_image(const MaskedBceUpsampledArguments& a, const OuterAxis& outer) {
  const double high = static_cast<double>(a.high.depth * a.high.height * a.high.width * element_size(a.dtype));
  const double border = static_cast<double>(2 * outer.slice_logits * static_cast<std::int64_t>(sizeof(float)));
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(kBorderShare * high / border), 1, outer.low);
}

// What every call shares: how the work is cut.
class Plan {
 public:
  explicit Plan(const MaskedBceUpsampledArguments& a)
      : a_(a), outer_(outer_axis(a)), bands_(bands_of_image(a, outer_)) {
    for (std::int64_t organ = 0; organ < a.organs; organ += kWordBits)
      add_groups(organ, std::min(kWordBits, a.organs - organ));
    borders_.resize(a.gradient == nullptr ? 0 : static_cast<std::size_t>(a.batch * (bands_ - 1)) * border_size());
    sums_.resize(static_cast<std::size_t>(a.batch * bands_ * a.organs));
  }

  std::int64_t items() const { return a_.batch * bands_ * static_cast<std::int64_t>(groups_.size()); }

  std::int64_t scratch_size(const UpsampledBand& band) const {
    return a_.gradient == nullptr ? 0 : 2 * band.organs * outer_.slice_logits;
  }

  UpsampledBand band(std::int64_t item) {
    const auto groups = static_cast<std::int64_t>(groups_.size());
    const auto [organ, organs] = groups_[item % groups];
    const std::int64_t image = item / groups / bands_, index = item / groups % bands_;
    const bool borders = a_.gradient != nullptr;
    return {
        .image = image,
        .organ = organ,
        .organs = organs,
        .low_begin = low_begin(index),
        .low_end = low_begin(index + 1),
        .begin = high_begin(low_begin(index)),
        .end = high_begin(low_begin(index + 1)),
        .first = borders && index > 0 ? border(image, index - 1, 1, organ) : nullptr,
        .last = borders && index + 1 < bands_ ? border(image, index, 0, organ) : nullptr,
        .scratch = nullptr,
        .sums = &sums_[(image * bands_ + index) * a_.organs + organ],
    };
  }

  // Partial results, in the order of the bands, whichever thread made them.
  void combine(int threads) {
    std::fill_n(a_.sums, a_.batch * a_.organs, 0.0);
    for (std::int64_t image = 0; image < a_.batch; ++image)
      for (std::int64_t band = 0; band < bands_; ++band)
        for (std::int64_t organ = 0; organ < a_.organs; ++organ)
          a_.sums[image * a_.organs + organ] += sums_[(image * bands_ + band) * a_.organs + organ];
    if (a_.gradient == nullptr) return;
    parallel_for(a_.batch * (bands_ - 1), threads, [&](std::int64_t item) {
      const std::int64_t image = item / (bands_ - 1), index = item % (bands_ - 1);
      for (std::int64_t organ = 0; organ < a_.organs; ++organ) join(image, index, organ);
    });
  }

 private:
  void add_groups(std::int64_t organ, std::int64_t organs) {
    const std::int64_t bands = std::max<std::int64_t>(a_.batch * bands_, 1);
    const std::int64_t groups = std::min(organs, (kItems + bands - 1) / bands);
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t begin = organs * group / groups, end = organs * (group + 1) / groups;
      groups_.push_back({organ + begin, end - begin});
    }
  }

  std::int64_t low_begin(std::int64_t band) const { return outer_.low * band / bands_; }

  // The first high slice whose interpolation starts at slice `low`, or behind it.
  std::int64_t high_begin(std::int64_t low) const {
    std::int64_t begin = 0, end = outer_.high;
    while (begin < end) {
      const std::int64_t middle = (begin + end) / 2;
      if (source_of(middle, outer_.low, outer_.high).low < low)
        begin = middle + 1;
      else
        end = middle;
    }
    return begin;
  }

  std::size_t border_size() const { return static_cast<std::size_t>(2 * a_.organs * outer_.slice_logits); }

  // [batch, bands - 1, 2, organs, slice_logits]: what the band above and the band below give to the slice between them.
  float* border(std::int64_t image, std::int64_t index, std::int64_t side, std::int64_t organ) {
    return &borders_[(image * (bands_ - 1) + index) * border_size() + (side * a_.organs + organ) * outer_.slice_logits];
  }

  void join(std::int64_t image, std::int64_t index, std::int64_t organ) {
    float* above = border(image, index, 0, organ);
    const float* below = border(image, index, 1, organ);
    for (std::int64_t i = 0; i < outer_.slice_logits; ++i) above[i] += below[i];
    const std::int64_t at = ((image * a_.organs + organ) * outer_.low + low_begin(index + 1)) * outer_.slice_logits;
    switch (a_.dtype) {
      case DType::float32:
        return rounded(above, static_cast<float*>(a_.gradient) + at);
      case DType::bfloat16:
        return rounded(above, static_cast<BFloat16*>(a_.gradient) + at);
      case DType::float16:
        return rounded(above, static_cast<Float16*>(a_.gradient) + at);
    }
  }

  template <typename Logit>
  void rounded(const float* values, Logit* gradient) const {
    for (std::int64_t i = 0; i < outer_.slice_logits; ++i) gradient[i] = from_float<Logit>(values[i]);
  }

  struct Group {
    std::int64_t organ, organs;
  };

  const MaskedBceUpsampledArguments& a_;
  OuterAxis outer_;
  std::int64_t bands_;  // of one image
  std::vector<Group> groups_;
  std::vector<float> borders_;
  std::vector<double> sums_;  // [batch, bands, organs]
};

// An organ's gradient comes together from several bands: only then can it be divided.
void divide_gradient(const MaskedBceUpsampledArguments& a, std::int64_t divisor, int threads) {
  const std::int64_t channels = a.batch * a.organs;
  const std::vector<double> factors(static_cast<std::size_t>(channels), 1.0 / static_cast<double>(divisor));
  const std::int64_t pixels = a.low.depth * a.low.height * a.low.width;
  scale_gradient_cpu({a.dtype, a.gradient, factors.data(), channels, pixels}, threads);
}

}  // namespace

void masked_bce_upsampled_cpu(const MaskedBceUpsampledArguments& a, int threads) {
  const std::int64_t voxels = a.high.depth * a.high.height * a.high.width;
  count_known(a.labels, a.table, a.batch, a.organs, voxels, a.counts, threads);
  if (a.batch * voxels == 0) {
    std::fill_n(a.sums, a.batch * a.organs, 0.0);
    *a.loss = 0.0f;
    if (a.gradient != nullptr)
      std::fill_n(static_cast<std::uint8_t*>(a.gradient),
                  a.batch * a.organs * a.low.depth * a.low.height * a.low.width * element_size(a.dtype), 0);
    return;
  }
  const UpsampledColumns columns(a.low.width, a.high.width);
  const ColumnTables tables = columns.tables();
  Plan plan(a);
  MaskedBceUpsampledKernel* const kernel = SMILE_FAST_DISPATCH(masked_bce_upsampled_kernel);
  parallel_for(plan.items(), threads, [&](std::int64_t item) {
    UpsampledBand band = plan.band(item);
    std::vector<float> scratch(static_cast<std::size_t>(plan.scratch_size(band)));
    band.scratch = scratch.data();
    kernel(a, tables, band);
  });
  plan.combine(threads);
  const std::int64_t known = a.mean ? known_pairs(a.counts, a.batch * a.organs) : 1;
  *a.loss = reduced_loss(a.sums, a.batch * a.organs, known);
  if (a.gradient != nullptr && divides_gradient(a.dtype, a.mean)) divide_gradient(a, known, threads);
}

}  // namespace smile_fast
