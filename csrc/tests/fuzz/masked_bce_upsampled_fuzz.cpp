// masked_bce_upsampled_cpu against a loop over the voxels in double precision.
//
// What is checked needs moderate logits. Others, NaN and Inf among them, may stand where no known voxel reads, and then
// must not show; where one does, its channel's sum is left out, and the gradient of all that shares a voxel with it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/masked_bce/label_counts.h"
#include "core/masked_bce_upsampled/masked_bce_upsampled.h"
#include "fuzz.h"
#include "tests/upsampled_problems.h"

namespace {

using namespace smile_fast;
using fuzz::Choices;
using fuzz::Exact;

constexpr double kModerate = 64.0;  // the largest logit whose loss and slope are compared
constexpr int kFewOrgans = 4;       // that so many voxels are affordable for
constexpr int kVoxels = 6000, kVoxelsOfMany = 300;

// Float32 arithmetic, relative to what is summed: each interpolated logit is rounded a few times, by 2^-24 of the
// largest, and no chain of additions is longer than kRoundings. A gradient is rounded to its dtype, too.
constexpr double kUnit = 0x1p-24;
constexpr double kRoundings = 64.0, kLogitRoundings = 4.0;
constexpr double kWeightRoundings = 1.5;  // absolute: half a unit of each axis, where 1 - weight cancels
template <typename Logit>
constexpr double kFormatUnit = 0.0;
template <>
constexpr double kFormatUnit<BFloat16> = 0x1.01p-8;
template <>
constexpr double kFormatUnit<Float16> = 0x1.01p-11;
template <typename Logit>
constexpr double kSmallest = testing::dtype_of<Logit> == DType::float16 ? 0x1p-24 : 0x1p-126;

struct Sizes {
  std::int64_t batch, organs, words;
  Extent low, high;
};

std::int64_t size_of(const Extent& extent) { return extent.depth * extent.height * extent.width; }

// What an element of the output reads along one axis; the position, in units of 1 / (2 output), is exact.
struct Axis {
  std::int64_t at[2];
  double weight[2];
};

Axis axis(std::int64_t i, std::int64_t input, std::int64_t output) {
  if (input == output) return {{i, i}, {1.0, 0.0}};
  const std::int64_t position = std::max<std::int64_t>((2 * i + 1) * input - output, 0);
  const std::int64_t low = std::min(position / (2 * output), input - 1), next = std::min(low + 1, input - 1);
  const double weight = static_cast<double>(position - 2 * output * low) / static_cast<double>(2 * output);
  return {{low, next}, {1.0 - weight, weight}};
}

struct Tap {
  std::int64_t at;
  double weight;
};

std::array<Tap, 8> taps(const Sizes& s, std::int64_t voxel) {
  const Axis z = axis(voxel / (s.high.height * s.high.width), s.low.depth, s.high.depth);
  const Axis y = axis(voxel / s.high.width % s.high.height, s.low.height, s.high.height);
  const Axis x = axis(voxel % s.high.width, s.low.width, s.high.width);
  std::array<Tap, 8> read;
  for (int corner = 0; corner < 8; ++corner) {
    const int i = corner / 4, j = corner / 2 % 2, k = corner % 2;
    read[corner] = {(z.at[i] * s.low.height + y.at[j]) * s.low.width + x.at[k],
                    z.weight[i] * y.weight[j] * x.weight[k]};
  }
  return read;
}

// One channel, [low], as it should be.
struct ExactChannel {
  explicit ExactChannel(std::int64_t size) : gradient(size), magnitude(size), slopes_at(size), wild(size) {}
  double sum = 0.0, slopes = 0.0, largest = 0.0;
  std::int64_t count = 0;
  bool any_wild = false, any_nan = false;              // among the logits that are read
  std::vector<double> gradient, magnitude, slopes_at;  // magnitude: the sum of the terms' sizes; and without weights
  std::vector<bool> wild;                              // shares a voxel with a logit that is not moderate
};

void add_voxel(const std::array<Tap, 8>& read, const std::vector<double>& logits, bool positive,
               ExactChannel& channel) {
  double logit = 0.0;
  bool wild = false;
  ++channel.count;
  for (const Tap& tap : read) {
    const double value = logits[tap.at];
    wild = wild || !(std::abs(value) <= kModerate);
    channel.any_nan = channel.any_nan || std::isnan(value);
    logit += tap.weight * value;
  }
  channel.any_wild = channel.any_wild || wild;
  if (wild) {
    for (const Tap& tap : read) channel.wild[tap.at] = true;
    return;
  }
  const double x = positive ? -logit : logit;
  const double slope = x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
  channel.sum += std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
  channel.slopes += slope;
  for (const Tap& tap : read) {
    channel.largest = std::max(channel.largest, std::abs(logits[tap.at]));
    channel.gradient[tap.at] += (positive ? -slope : slope) * tap.weight;
    channel.magnitude[tap.at] += slope * tap.weight;
    channel.slopes_at[tap.at] += slope;
  }
}

template <typename Logit>
void check_channel(const ExactChannel& channel, double sum, std::int64_t count, const Logit* gradient) {
  const double of_logits = kLogitRoundings * channel.largest;
  fuzz::require(count == channel.count, "count");
  fuzz::require(!channel.any_nan || std::isnan(sum), "a sum that swallows NaN");
  const double allowed = kUnit * (kRoundings * channel.sum + of_logits * channel.slopes);
  fuzz::require(channel.any_wild || std::abs(sum - channel.sum) <= allowed, "sum");
  if (gradient == nullptr) return;
  for (std::size_t i = 0; i < channel.gradient.size(); ++i) {
    const double exact = channel.gradient[i];
    const double arithmetic = (kRoundings + of_logits) * channel.magnitude[i] + kWeightRoundings * channel.slopes_at[i];
    const double allowed_here = kUnit * arithmetic + kFormatUnit<Logit> * std::abs(exact) + kSmallest<Logit>;
    fuzz::require(channel.wild[i] || std::abs(to_float(gradient[i]) - exact) <= allowed_here, "gradient");
  }
}

template <typename Logit>
void check(const Sizes& s, const MaskedBceUpsampledArguments& a) {
  const std::int64_t low_size = size_of(s.low), voxels = size_of(s.high);
  std::vector<std::array<Tap, 8>> read;
  for (std::int64_t voxel = 0; voxel < voxels; ++voxel) read.push_back(taps(s, voxel));
  for (std::int64_t index = 0; index < s.batch * s.organs; ++index) {
    const std::int64_t image = index / s.organs, organ = index % s.organs;
    std::vector<double> logits(low_size);
    for (std::int64_t i = 0; i < low_size; ++i)
      logits[i] = to_float(static_cast<const Logit*>(a.logits)[index * low_size + i]);
    ExactChannel channel(low_size);
    for (std::int64_t voxel = 0; voxel < voxels; ++voxel) {
      const std::int64_t label = image * kLabelValues + a.labels[image * voxels + voxel];
      const std::uint32_t* row = a.table + label * 2 * s.words + organ / kWordBits;
      const auto set = [organ](std::uint32_t word) { return (word >> organ % kWordBits & 1) != 0; };
      if (set(row[0])) add_voxel(read[voxel], logits, set(row[s.words]), channel);
    }
    const Logit* gradient = a.gradient == nullptr ? nullptr : static_cast<const Logit*>(a.gradient) + index * low_size;
    check_channel<Logit>(channel, a.sums[index], a.counts[index], gradient);
  }
}

Sizes choose_sizes(Choices& choices) {
  Sizes s;
  s.batch = choices.byte() % 3;
  s.organs = choices.byte() % 8 == 0 ? 1 + choices.byte() % 70 : 1 + choices.byte() % kFewOrgans;
  s.words = (s.organs + kWordBits - 1) / kWordBits;
  const bool volume = choices.byte() % 3 == 0, shrinks = choices.byte() % 4 == 0;
  s.high.depth = volume ? 1 + choices.byte() % 5 : 1;
  s.high.width = choices.up_to(300);
  const auto rows = (s.organs > kFewOrgans ? kVoxelsOfMany : kVoxels) / (s.high.depth * (s.high.width + 1));
  s.high.height = choices.up_to(static_cast<int>(rows));
  s.low.depth = volume ? 1 + choices.byte() % 4 : 1;
  s.low.height = 1 + choices.up_to(shrinks ? 60 : 20);
  s.low.width = 1 + choices.up_to(shrinks ? 300 : 40);
  return s;
}

template <typename Logit>
void run(Choices& choices) {
  const Sizes s = choose_sizes(choices);
  const bool with_gradient = choices.byte() % 4 != 0;
  const int threads = 1 + choices.byte() % 3;
  fuzz::Filler filler(choices.word());
  const Exact<std::uint32_t> table(s.batch * kLabelValues * 2 * s.words);
  const std::uint32_t never = choices.word(), always = choices.word();
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = (filler.next() & ~never) | always;
  const std::uint32_t kinds = 1 + choices.byte(), run_length = 1 + choices.up_to(400);
  const Exact<std::uint8_t> labels = fuzz::choose_labels(filler, s.batch * size_of(s.high), kinds, run_length);
  const Exact<Logit> logits = fuzz::choose_logits<Logit>(choices, s.batch * s.organs * size_of(s.low));

  const Exact<double> sums(s.batch * s.organs), other_sums(sums.size());
  const Exact<std::int64_t> counts(sums.size()), other_counts(sums.size());
  const Exact<Logit> gradient(logits.size()), other_gradient(logits.size());
  float loss = 0.0f, other_loss = 0.0f;
  MaskedBceUpsampledArguments arguments{testing::dtype_of<Logit>,
                                        logits.data(),
                                        labels.data(),
                                        table.data(),
                                        s.batch,
                                        s.organs,
                                        s.low,
                                        s.high,
                                        sums.data(),
                                        counts.data(),
                                        with_gradient ? gradient.data() : nullptr,
                                        false,
                                        &loss};
  masked_bce_upsampled_cpu(arguments, 1);
  check<Logit>(s, arguments);
  arguments.sums = other_sums.data();
  arguments.counts = other_counts.data();
  arguments.loss = &other_loss;
  arguments.gradient = with_gradient ? other_gradient.data() : nullptr;
  masked_bce_upsampled_cpu(arguments, threads);
  fuzz::require(fuzz::same_bits(sums, other_sums), "other sums with other threads");
  fuzz::require(fuzz::same_bits(counts, other_counts), "other counts with other threads");
  fuzz::require(std::memcmp(&loss, &other_loss, sizeof(float)) == 0, "another loss with other threads");  // NaN as well
  fuzz::require(!with_gradient || fuzz::same_bits(gradient, other_gradient), "another gradient with other threads");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::on_chosen([]<typename T>(Choices& choices) { run<T>(choices); }, data, size);
}
