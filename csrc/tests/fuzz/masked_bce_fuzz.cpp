// masked_bce_cpu against a loop over the voxels in double precision.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/masked_bce/label_counts.h"
#include "core/masked_bce/masked_bce.h"
#include "fuzz.h"

namespace {

using namespace smile_fast;
using fuzz::Choices;
using fuzz::Exact;

// A gradient's error, relative to its size: rounding to the dtype, and float32 arithmetic before it.
template <typename Logit>
constexpr double kGradientRelative = 0x1p-7;
template <>
constexpr double kGradientRelative<float> = 0x1p-20;
template <>
constexpr double kGradientRelative<Float16> = 0x1p-10;
// Below it the dtype has no digits: half a denormal of float16; a product of two roundings elsewhere.
template <typename Logit>
constexpr double kGradientAbsolute = 0x1p-126;
template <>
constexpr double kGradientAbsolute<Float16> = 0x1p-24;
constexpr double kLossRelative = 1e-6;
constexpr double kLossAbsolute = 0x1p-148;  // of a voxel: exp(-|z|) is no nearer than denormal numbers are

struct Shape {
  std::int64_t batch, organs, voxels, words;
};

struct Voxel {
  bool known, positive;
};

Voxel look_up(const Shape& s, const Exact<std::uint32_t>& table, std::int64_t image, std::uint8_t label,
              std::int64_t organ) {
  const std::uint32_t* row = table.data() + (image * kLabelValues + label) * 2 * s.words + organ / kWordBits;
  return {(row[0] >> organ % kWordBits & 1) != 0, (row[s.words] >> organ % kWordBits & 1) != 0};
}

template <typename Logit>
void check(const Shape& s, const std::vector<double>& logits, const Exact<std::uint8_t>& labels,
           const Exact<std::uint32_t>& table, const Exact<double>& sums, const Exact<std::int64_t>& counts,
           const Logit* gradient, double scale) {
  for (std::int64_t channel = 0; channel < s.batch * s.organs; ++channel) {
    double sum = 0.0;
    std::int64_t count = 0;
    for (std::int64_t voxel = 0; voxel < s.voxels; ++voxel) {
      const std::int64_t image = channel / s.organs;
      const Voxel is = look_up(s, table, image, labels[image * s.voxels + voxel], channel % s.organs);
      const double x = is.positive ? -logits[channel * s.voxels + voxel] : logits[channel * s.voxels + voxel];
      if (is.known) sum += std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
      count += is.known;
      if (gradient == nullptr) continue;
      const double slope = x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
      const double exact = is.known ? (is.positive ? -slope : slope) * scale : 0.0;
      const double computed = to_float(gradient[channel * s.voxels + voxel]);
      fuzz::require(std::abs(computed - exact) <= kGradientRelative<Logit> * std::abs(exact) + kGradientAbsolute<Logit>,
                    "gradient");
    }
    fuzz::require(counts[channel] == count, "count");
    fuzz::require(std::abs(sums[channel] - sum) <= kLossRelative * sum + kLossAbsolute * static_cast<double>(count),
                  "sum");
  }
}

template <typename Logit>
void run(Choices& choices) {
  Shape s;
  s.batch = choices.byte() % 4;
  s.organs = 1 + choices.byte() % 70;
  s.voxels = choices.up_to(s.organs < 8 ? 3000 : 300);
  s.words = (s.organs + kWordBits - 1) / kWordBits;
  const std::uint8_t options = choices.byte();
  const bool mean = options & 1, with_gradient = options & 2, in_place = options & 4;
  const int threads = 1 + choices.byte() % 3;
  fuzz::Filler filler(choices.word());
  const std::uint32_t distinct_labels = 1 + choices.byte(), run_length = 1 + choices.up_to(400);

  Exact<std::uint32_t> table(s.batch * kLabelValues * 2 * s.words);
  const std::uint32_t never = choices.word(), always = choices.word();  // known
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = (filler.next() & ~never) | always;
  const Exact<std::uint8_t> labels = fuzz::choose_labels(filler, s.batch * s.voxels, distinct_labels, run_length);
  // Where an organ is known, the loss of an infinite logit would be infinite or NaN: those stay where it is unknown.
  Exact<Logit> logits(s.batch * s.organs * s.voxels);
  std::vector<double> values(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const std::int64_t channel = i / s.voxels, image = channel / s.organs;
    Logit logit = from_float<Logit>(fuzz::choose_float(choices.ended() ? filler.next() : choices.word()));
    const std::uint8_t of_voxel = labels[image * s.voxels + i % s.voxels];
    if (look_up(s, table, image, of_voxel, channel % s.organs).known && !(std::abs(to_float(logit)) < 1e6f))
      logit = from_float<Logit>(3.0f);
    logits[i] = logit;
    values[i] = to_float(logit);
  }

  const Exact<double> sums(s.batch * s.organs), other_sums(sums.size());
  const Exact<std::int64_t> counts(s.batch * s.organs), other_counts(counts.size());
  const Exact<Logit> gradient(with_gradient ? logits.size() : 0), other_gradient(gradient.size());
  float loss = 0.0f, other_loss = 0.0f;
  MaskedBceArguments arguments{testing::dtype_of<Logit>,
                               logits.data(),
                               labels.data(),
                               table.data(),
                               s.batch,
                               s.organs,
                               s.voxels,
                               sums.data(),
                               counts.data(),
                               with_gradient ? gradient.data() : nullptr,
                               mean,
                               &loss};
  masked_bce_cpu(arguments, 1);
  std::int64_t known = 0;
  for (std::size_t channel = 0; channel < counts.size(); ++channel) known += counts[channel];
  const double divisor = mean ? static_cast<double>(std::max<std::int64_t>(known, 1)) : 1.0;
  const double scale = divides_gradient(arguments.dtype, mean) ? 1.0 / divisor : 1.0;
  const double total = std::accumulate(sums.data(), sums.data() + sums.size(), 0.0) / divisor;
  fuzz::require(std::abs(loss - total) <= 0x1.01p-24 * total + 0x1p-149, "loss");
  check<Logit>(s, values, labels, table, sums, counts, with_gradient ? gradient.data() : nullptr, scale);

  arguments.sums = other_sums.data();
  arguments.counts = other_counts.data();
  arguments.loss = &other_loss;
  if (with_gradient) arguments.gradient = in_place ? logits.data() : other_gradient.data();
  masked_bce_cpu(arguments, threads);
  fuzz::require(fuzz::same_bits(sums, other_sums), "other sums with other threads");
  fuzz::require(fuzz::same_bits(counts, other_counts) && loss == other_loss, "other counts with other threads");
  fuzz::require(!with_gradient || fuzz::same_bits(gradient, in_place ? logits : other_gradient),
                "another gradient with other threads or in place");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::on_chosen([]<typename T>(Choices& choices) { run<T>(choices); }, data, size);
}
