// masked_bce_upsampled_cpu against a scalar loop in double precision: sizes that grow, shrink and stay, images and
// volumes, all dtypes, many organs, several threads, poison, and what it allocates.
#include "core/masked_bce_upsampled.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/float_formats.h"
#include "core/label_counts.h"
#include "core/masked_bce_upsampled_block.h"
#include "core/targets.h"

namespace {

using smile_fast::BFloat16;
using smile_fast::DType;
using smile_fast::Extent;
using smile_fast::Float16;
using smile_fast::kLabelValues;
using smile_fast::kWordBits;
using smile_fast::MaskedBceUpsampledArguments;
using smile_fast::Target;
using smile_fast::testing::check;

std::atomic<std::int64_t> allocated{0}, peak{0};

constexpr std::size_t kHeader = 16;  // in front of what is handed out: how much it is

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t size) {
  auto* block = static_cast<std::uint64_t*>(std::malloc(size + kHeader));
  if (block == nullptr) throw std::bad_alloc();
  *block = size;
  const std::int64_t now = allocated += static_cast<std::int64_t>(size);
  std::int64_t before = peak;
  while (before < now && !peak.compare_exchange_weak(before, now)) {
  }
  return reinterpret_cast<char*>(block) + kHeader;
}

[[gnu::noinline]] void operator delete(void* address) noexcept {
  if (address == nullptr) return;
  auto* block = reinterpret_cast<std::uint64_t*>(static_cast<char*>(address) - kHeader);
  allocated -= static_cast<std::int64_t>(*block);
  std::free(block);
}

void operator delete(void* address, std::size_t) noexcept { operator delete(address); }

namespace {

constexpr std::int64_t kCanaries = 16;  // elements after every result that must stay untouched
constexpr std::uint8_t kCanary = 0xa5;

template <typename Logit>
constexpr DType dtype_of = DType::float32;
template <>
constexpr DType dtype_of<BFloat16> = DType::bfloat16;
template <>
constexpr DType dtype_of<Float16> = DType::float16;

std::int64_t size_of(const Extent& extent) { return extent.depth * extent.height * extent.width; }

std::string text(const Extent& extent) {
  return std::to_string(extent.depth) + "x" + std::to_string(extent.height) + "x" + std::to_string(extent.width);
}

// A low-resolution element and its weight, as a voxel reads it.
struct Tap {
  std::int64_t at;
  double weight;
};

struct AxisTaps {
  std::int64_t at[2];
  double weight[2];
};

// torch's rule in double precision, written down once more.
AxisTaps axis_taps(std::int64_t i, std::int64_t input, std::int64_t output) {
  if (input == output) return {{i, i}, {1.0, 0.0}};
  const double source = std::max((static_cast<double>(i) + 0.5) * static_cast<double>(input) / output - 0.5, 0.0);
  const std::int64_t low = std::min(static_cast<std::int64_t>(source), input - 1);
  const double weight = std::min(source - static_cast<double>(low), 1.0);
  return {{low, std::min(low + 1, input - 1)}, {1.0 - weight, weight}};
}

std::array<Tap, 8> taps(const Extent& low, const Extent& high, std::int64_t voxel) {
  const AxisTaps z = axis_taps(voxel / (high.height * high.width), low.depth, high.depth);
  const AxisTaps y = axis_taps(voxel / high.width % high.height, low.height, high.height);
  const AxisTaps x = axis_taps(voxel % high.width, low.width, high.width);
  std::array<Tap, 8> found;
  for (int corner = 0; corner < 8; ++corner) {
    const int i = corner >> 2, j = corner >> 1 & 1, k = corner & 1;
    found[corner] = {(z.at[i] * low.height + y.at[j]) * low.width + x.at[k], z.weight[i] * y.weight[j] * x.weight[k]};
  }
  return found;
}

template <typename Logit>
struct Problem {
  std::int64_t batch, organs, words;
  Extent low, high;
  std::vector<Logit> logits;
  std::vector<std::uint8_t> labels;
  std::vector<std::uint32_t> table;
  std::string name;

  bool bit(std::int64_t image, std::int64_t voxel, int which, std::int64_t organ) const {
    const std::int64_t row = image * kLabelValues + labels[image * size_of(high) + voxel];
    return table[(row * 2 + which) * words + organ / kWordBits] >> (organ % kWordBits) & 1;
  }
};

template <typename T>
struct Guarded {
  explicit Guarded(std::int64_t size) : size(size), values(size + kCanaries) {
    std::memset(static_cast<void*>(values.data()), kCanary, values.size() * sizeof(T));
  }
  bool canaries_live() const {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data() + size);
    return std::all_of(bytes, bytes + kCanaries * sizeof(T), [](std::uint8_t byte) { return byte == kCanary; });
  }
  bool operator==(const Guarded& other) const {
    return std::memcmp(values.data(), other.values.data(), values.size() * sizeof(T)) == 0;
  }
  std::int64_t size;
  std::vector<T> values;
};

template <typename Logit>
struct Results {
  explicit Results(const Problem<Logit>& p)
      : sums(p.batch * p.organs), counts(p.batch * p.organs), gradient(p.batch * p.organs * size_of(p.low)) {}
  bool canaries_live() const { return sums.canaries_live() && counts.canaries_live() && gradient.canaries_live(); }
  Guarded<double> sums;
  Guarded<std::int64_t> counts;
  Guarded<Logit> gradient;
};

template <typename Logit>
Results<Logit> run(const Problem<Logit>& p, int threads, bool with_gradient = true) {
  Results<Logit> results(p);
  smile_fast::masked_bce_upsampled_cpu(
      {dtype_of<Logit>, p.logits.data(), p.labels.data(), p.table.data(), p.batch, p.organs, p.low, p.high,
       results.sums.values.data(), results.counts.values.data(),
       with_gradient ? results.gradient.values.data() : nullptr},
      threads);
  return results;
}

// Labels in runs of `run` voxels. A third of the organs are never known, a third everywhere and never positive.
template <typename Logit>
Problem<Logit> make_problem(std::int64_t batch, std::int64_t organs, Extent low, Extent high, int run) {
  Problem<Logit> p{batch, organs, (organs + kWordBits - 1) / kWordBits, low, high, {}, {}, {}, {}};
  p.name = std::to_string(batch) + " images, " + std::to_string(organs) + " organs, " + text(low) + " to " +
           text(high) + ", dtype " + std::to_string(static_cast<int>(dtype_of<Logit>)) + ", runs of " +
           std::to_string(run);
  std::mt19937 random(static_cast<std::uint32_t>(organs * 1000003 + size_of(high) * 7 + run));
  std::normal_distribution<float> normal(0.0f, 4.0f);
  for (std::int64_t i = 0; i < batch * organs * size_of(low); ++i)
    p.logits.push_back(smile_fast::from_float<Logit>(normal(random)));
  for (std::int64_t i = 0; i < batch * size_of(high); ++i)
    p.labels.push_back(i % run == 0 ? static_cast<std::uint8_t>(random()) : p.labels.back());
  for (std::int64_t row = 0; row < batch * kLabelValues; ++row) {
    for (int which : {0, 1}) {
      for (std::int64_t word = 0; word < p.words; ++word) {
        std::uint32_t bits = static_cast<std::uint32_t>(random());
        for (int organ = 0; organ < kWordBits; ++organ) {
          if (organ % 3 == 1) bits &= ~(1u << organ);
          if (organ % 3 == 2) bits = which == 0 ? bits | 1u << organ : bits & ~(1u << organ);
        }
        p.table.push_back(bits);
      }
    }
  }
  return p;
}

// NaN and Inf wherever no known voxel reads.
template <typename Logit>
void poison(Problem<Logit>& p) {
  std::vector<bool> read(p.logits.size());
  for (std::int64_t plane = 0; plane < p.batch * p.organs; ++plane)
    for (std::int64_t voxel = 0; voxel < size_of(p.high); ++voxel)
      if (p.bit(plane / p.organs, voxel, 0, plane % p.organs))
        for (const Tap& tap : taps(p.low, p.high, voxel)) read[plane * size_of(p.low) + tap.at] = true;
  const float poisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity()};
  for (std::size_t i = 0; i < read.size(); ++i)
    if (!read[i]) p.logits[i] = smile_fast::from_float<Logit>(poisons[i % 3]);
}

// The rule for float32: an interpolated logit carries three roundings, each 2^-24 of the largest logit M, and
// d log(slope) / du <= 1; exp, division, products and sums add a few more. 16-bit formats round once, at the end.
constexpr double kUnit = 0x1p-24;
constexpr double kRoundings = 12.0;

template <typename Logit>
constexpr double kFormatUnit = 0.0;
template <>
constexpr double kFormatUnit<BFloat16> = 0x1p-8;
template <>
constexpr double kFormatUnit<Float16> = 0x1p-11;
template <typename Logit>
constexpr double kSmallest = dtype_of<Logit> == DType::float16 ? 0x1p-25 : 0x1p-126;  // half a denormal, or any

template <typename Logit>
void check_plane(const Problem<Logit>& p, const Results<Logit>& results, std::int64_t plane) {
  const std::int64_t low_size = size_of(p.low);
  std::vector<double> exact(low_size), magnitude(low_size);
  double sum = 0.0, slopes = 0.0, largest = 0.0;
  std::int64_t count = 0;
  for (std::int64_t voxel = 0; voxel < size_of(p.high); ++voxel) {
    if (!p.bit(plane / p.organs, voxel, 0, plane % p.organs)) continue;
    const auto read = taps(p.low, p.high, voxel);
    double z = 0.0;
    for (const Tap& tap : read) {
      const double logit = smile_fast::to_float(p.logits[plane * low_size + tap.at]);
      largest = std::max(largest, std::abs(logit));
      z += tap.weight * logit;
    }
    const double sign = p.bit(plane / p.organs, voxel, 1, plane % p.organs) ? -1.0 : 1.0, x = sign * z;
    const double slope = x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
    sum += std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
    slopes += slope;
    ++count;
    for (const Tap& tap : read) {
      exact[tap.at] += sign * slope * tap.weight;
      magnitude[tap.at] += slope * tap.weight;
    }
  }
  const std::string name = p.name + ": plane " + std::to_string(plane);
  const double allowed = kUnit * (kRoundings * sum + 3.0 * largest * slopes);
  check(std::abs(results.sums.values[plane] - sum) <= allowed, name + ", sum");
  check(results.counts.values[plane] == count, name + ", count");
  double worst = -1.0;
  for (std::int64_t i = 0; i < low_size; ++i) {
    const double found = smile_fast::to_float(results.gradient.values[plane * low_size + i]);
    const double allowed = kUnit * (kRoundings + 3.0 * largest) * magnitude[i] +
                           kFormatUnit<Logit> * std::abs(exact[i]) * 1.001 + kSmallest<Logit>;
    const bool holds = std::abs(found - exact[i]) <= allowed;  // false for NaN
    worst = std::max(worst, holds ? 0.0 : std::abs(found - exact[i]) / allowed);
    if (std::isnan(found)) worst = std::numeric_limits<double>::infinity();
  }
  check(worst <= 0.0, name + ", gradient is wrong by this many times the allowed: " + std::to_string(worst));
}

template <typename Logit>
void test(std::int64_t batch, std::int64_t organs, Extent low, Extent high, int run_length) {
  Problem<Logit> p = make_problem<Logit>(batch, organs, low, high, run_length);
  poison(p);
  const Results<Logit> one = run(p, 1);
  for (std::int64_t plane = 0; plane < batch * organs; ++plane) check_plane(p, one, plane);
  check(one.canaries_live(), p.name + ": canaries");
  // Every start of threads costs milliseconds on a busy machine: all numbers for one dtype, one for the others.
  for (const int threads : dtype_of<Logit> == DType::float32 ? std::vector{2, 3, 8} : std::vector{3}) {
    const Results<Logit> more = run(p, threads);
    check(one.sums == more.sums && one.counts == more.counts && one.gradient == more.gradient,
          p.name + ": other bits with threads " + std::to_string(threads));
  }
  const Results<Logit> sums_only = run(p, 2, false);
  check(one.sums == sums_only.sums && one.counts == sums_only.counts, p.name + ": other bits without a gradient");
  check(sums_only.gradient == Results<Logit>(p).gradient, p.name + ": writes a gradient that nobody wants");
}

// A NaN that known voxels read spoils its own plane's sum, and the gradients of what those voxels read: nothing else.
template <typename Logit>
void test_poison_that_is_read(Extent low, Extent high, std::int64_t at) {
  Problem<Logit> p = make_problem<Logit>(1, 3, low, high, 1);
  const Results<Logit> clean = run(p, 2);
  p.logits[at] = smile_fast::from_float<Logit>(std::numeric_limits<float>::quiet_NaN());  // organ 0
  std::vector<bool> may_be_nan(size_of(low));
  for (std::int64_t voxel = 0; voxel < size_of(high); ++voxel) {
    const auto read = taps(low, high, voxel);
    const bool reads_it = std::any_of(read.begin(), read.end(), [at](const Tap& tap) { return tap.at == at; });
    if (reads_it && p.bit(0, voxel, 0, 0))
      for (const Tap& tap : read) may_be_nan[tap.at] = true;
  }
  const Results<Logit> found = run(p, 2);
  check(std::isnan(found.sums.values[0]), p.name + ": NaN is swallowed, sum");
  check(found.sums.values[2] == clean.sums.values[2], p.name + ": NaN reaches another plane");
  check(std::isnan(smile_fast::to_float(found.gradient.values[at])), p.name + ": NaN is swallowed, gradient");
  bool same = true;
  for (std::int64_t i = 0; i < 3 * size_of(low); ++i)
    if (i >= size_of(low) || !may_be_nan[i])
      same = same && std::memcmp(&found.gradient.values[i], &clean.gradient.values[i], sizeof(Logit)) == 0;
  check(same, p.name + ": NaN leaks to logits that share no voxel with it, from " + std::to_string(at));
}

template <typename Logit>
void test_all() {
  const std::pair<Extent, Extent> sizes[] = {
      {{1, 4, 5}, {1, 32, 40}},   {{1, 5, 7}, {1, 17, 23}},   {{1, 6, 6}, {1, 6, 6}},     {{1, 9, 8}, {1, 4, 11}},
      {{1, 1, 1}, {1, 3, 2}},     {{1, 1, 3}, {1, 8, 9}},     {{1, 3, 1}, {1, 1, 1}},     {{1, 40, 40}, {1, 7, 5}},
      {{1, 2, 200}, {1, 3, 9}},   {{1, 3, 20}, {1, 24, 160}}, {{1, 2, 150}, {1, 5, 260}}, {{1, 3, 4}, {1, 60, 129}},
      {{1, 16, 3}, {1, 256, 24}}, {{1, 25, 2}, {1, 301, 17}}, {{2, 3, 4}, {5, 6, 9}},     {{3, 1, 2}, {3, 4, 5}},
      {{16, 3, 2}, {128, 12, 9}}, {{4, 3, 5}, {2, 7, 4}},     {{1, 2, 3}, {4, 5, 6}},     {{3, 2, 3}, {1, 5, 6}},
      {{2, 2, 20}, {4, 17, 140}},
  };
  for (const auto& [low, high] : sizes) {
    test<Logit>(2, 3, low, high, 1);
    test<Logit>(1, 3, low, high, 300);
  }
  for (const std::int64_t organs : {1, 13, 33, 65, 128}) test<Logit>(1, organs, {1, 5, 7}, {1, 17, 23}, 40);
  test<Logit>(1, 33, {1, 16, 3}, {1, 256, 24}, 100);
  test<Logit>(0, 3, {1, 2, 2}, {1, 4, 4}, 1);
  test<Logit>(2, 3, {1, 2, 2}, {1, 0, 4}, 1);
  test<Logit>(1, 3, {1, 0, 0}, {1, 0, 0}, 1);
  for (const std::int64_t at : {0, 7, 13, 29}) test_poison_that_is_read<Logit>({1, 5, 6}, {1, 40, 45}, at);
  test_poison_that_is_read<Logit>({2, 3, 20}, {4, 17, 140}, 30);
}

// All logits 0: every factor of the products of losses is exactly 2, the largest there is.
void test_largest_products() {
  Problem<float> p = make_problem<float>(1, 1, {1, 8, 32}, {1, 64, 256}, 1);
  std::fill(p.logits.begin(), p.logits.end(), 0.0f);
  std::fill(p.table.begin(), p.table.end(), 1u);
  const double expected = 64 * 256 * std::log(2.0);
  check(std::abs(run(p, 1).sums.values[0] - expected) <= 1e-9 * expected, "all logits 0");
}

template <typename Logit>
void test_memory(std::int64_t batch, std::int64_t organs, Extent low, Extent high) {
  constexpr int kThreads = 2;
  const Problem<Logit> p = make_problem<Logit>(batch, organs, low, high, 50);
  Results<Logit> results(p);
  const MaskedBceUpsampledArguments arguments{dtype_of<Logit>,
                                              p.logits.data(),
                                              p.labels.data(),
                                              p.table.data(),
                                              batch,
                                              organs,
                                              low,
                                              high,
                                              results.sums.values.data(),
                                              results.counts.values.data(),
                                              results.gradient.values.data()};
  const std::int64_t before = allocated;
  peak = before;
  smile_fast::masked_bce_upsampled_cpu(arguments, kThreads);
  const bool all_freed = allocated == before;
  const std::int64_t extra = peak - before + kThreads * smile_fast::kUpsampledStack;
  const auto full = batch * organs * size_of(high) * static_cast<std::int64_t>(sizeof(Logit));
  check(extra <= full / 100, p.name + ": extra memory " + std::to_string(extra) + " of " + std::to_string(full));
  check(all_freed, p.name + ": memory is kept");
}

}  // namespace

int main() {
  for (const Target target : {Target::plain, Target::avx2, Target::avx512}) {
    if (!smile_fast::runs(target)) continue;
    smile_fast::use_target(target);
    test_all<float>();
    test_all<BFloat16>();
    test_all<Float16>();
    test_largest_products();
  }
  test_memory<float>(4, 3, {1, 64, 64}, {1, 512, 512});
  test_memory<float>(1, 13, {1, 64, 64}, {1, 512, 512});
  test_memory<BFloat16>(4, 13, {1, 64, 64}, {1, 512, 512});
  test_memory<Float16>(1, 33, {1, 64, 64}, {1, 512, 512});
  test_memory<float>(1, 3, {16, 32, 32}, {64, 128, 128});
  return smile_fast::testing::finish();
}
