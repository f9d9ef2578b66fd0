// masked_bce_upsampled_cpu against a scalar loop in double precision: sizes that grow, shrink and stay, images and
// volumes, all dtypes, many organs, several threads, poison, and what it allocates.
#include "core/masked_bce_upsampled/masked_bce_upsampled.h"

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
#include "core/masked_bce_upsampled/masked_bce_upsampled_kernel.h"
#include "kernels.h"
#include "losses.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

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
  Supervision supervision;  // of the voxels at full resolution
  Extent low, high;
  std::vector<Logit> logits;
  std::string name;

  std::int64_t channels() const { return supervision.batch * supervision.organs; }

  bool bit(std::int64_t channel, std::int64_t voxel, int which) const {
    return supervision.bit(channel / supervision.organs, voxel, which, channel % supervision.organs);
  }
};

template <typename Logit>
struct Results {
  explicit Results(const Problem<Logit>& p)
      : sums(p.channels()), counts(p.channels()), loss(1), gradient(p.channels() * size_of(p.low)) {}
  bool same_sums(const Results& other) const {
    return sums == other.sums && counts == other.counts && loss == other.loss;
  }
  bool canaries_live() const {
    return sums.canaries_live() && counts.canaries_live() && loss.canaries_live() && gradient.canaries_live();
  }
  Guarded<double> sums;
  Guarded<std::int64_t> counts;
  Guarded<float> loss;
  Guarded<Logit> gradient;
};

template <typename Logit>
void run_into(const Problem<Logit>& p, int threads, bool with_gradient, Results<Logit>& results, bool mean = false) {
  const Supervision& s = p.supervision;
  masked_bce_upsampled_cpu({dtype_of<Logit>, p.logits.data(), s.labels.data(), s.table.data(), s.batch, s.organs, p.low,
                            p.high, results.sums.data(), results.counts.data(),
                            with_gradient ? results.gradient.data() : nullptr, mean, results.loss.data()},
                           threads);
}

template <typename Logit>
Results<Logit> run(const Problem<Logit>& p, int threads, bool with_gradient = true) {
  Results<Logit> results(p);
  run_into(p, threads, with_gradient, results);
  return results;
}

template <typename Logit>
Problem<Logit> make_problem(std::int64_t batch, std::int64_t organs, Extent low, Extent high, Labels pattern) {
  std::mt19937 random(static_cast<std::uint32_t>(organs * 1000003 + size_of(high) * 7 + static_cast<int>(pattern)));
  Problem<Logit> p{Supervision(batch, organs, size_of(high), pattern, random), low, high, {}, {}};
  p.name = std::to_string(batch) + " images, " + std::to_string(organs) + " organs, " + text(low) + " to " +
           text(high) + ", dtype " + std::to_string(static_cast<int>(dtype_of<Logit>)) + ", labels " +
           std::to_string(static_cast<int>(pattern));
  std::normal_distribution<float> normal(0.0f, 4.0f);
  for (std::int64_t i = 0; i < p.channels() * size_of(low); ++i) p.logits.push_back(from_float<Logit>(normal(random)));
  return p;
}

// NaN and Inf wherever no known voxel reads.
template <typename Logit>
void poison(Problem<Logit>& p) {
  std::vector<bool> read(p.logits.size());
  for (std::int64_t channel = 0; channel < p.channels(); ++channel)
    for (std::int64_t voxel = 0; voxel < size_of(p.high); ++voxel)
      if (p.bit(channel, voxel, 0))
        for (const Tap& tap : taps(p.low, p.high, voxel)) read[channel * size_of(p.low) + tap.at] = true;
  const float poisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity()};
  for (std::size_t i = 0; i < read.size(); ++i)
    if (!read[i]) p.logits[i] = from_float<Logit>(poisons[i % 3]);
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
void check_channel(const Problem<Logit>& p, const Results<Logit>& results, std::int64_t channel) {
  const std::int64_t low_size = size_of(p.low);
  std::vector<double> exact(low_size), magnitude(low_size);
  double sum = 0.0, slopes = 0.0, largest = 0.0;
  std::int64_t count = 0;
  for (std::int64_t voxel = 0; voxel < size_of(p.high); ++voxel) {
    if (!p.bit(channel, voxel, 0)) continue;
    const auto read = taps(p.low, p.high, voxel);
    double z = 0.0;
    for (const Tap& tap : read) {
      const double logit = to_float(p.logits[channel * low_size + tap.at]);
      largest = std::max(largest, std::abs(logit));
      z += tap.weight * logit;
    }
    const Exact bce = exact_bce(z, p.bit(channel, voxel, 1));
    sum += bce.loss;
    slopes += std::abs(bce.slope);
    ++count;
    for (const Tap& tap : read) {
      exact[tap.at] += bce.slope * tap.weight;
      magnitude[tap.at] += std::abs(bce.slope) * tap.weight;
    }
  }
  const std::string name = p.name + ": channel " + std::to_string(channel);
  const double allowed = kUnit * (kRoundings * sum + 3.0 * largest * slopes);
  check(std::abs(results.sums[channel] - sum) <= allowed, name + ", sum");
  check(results.counts[channel] == count, name + ", count");
  double worst = -1.0;
  for (std::int64_t i = 0; i < low_size; ++i) {
    const double found = to_float(results.gradient[channel * low_size + i]);
    const double allowed = kUnit * (kRoundings + 3.0 * largest) * magnitude[i] +
                           kFormatUnit<Logit> * std::abs(exact[i]) * 1.001 + kSmallest<Logit>;
    const bool holds = std::abs(found - exact[i]) <= allowed;  // false for NaN
    worst = std::max(worst, holds ? 0.0 : std::abs(found - exact[i]) / allowed);
    if (std::isnan(found)) worst = std::numeric_limits<double>::infinity();
  }
  check(worst <= 0.0, name + ", gradient is wrong by this many times the allowed: " + std::to_string(worst));
}

// With `mean`: the same sums, the loss and, but in float16, the gradient divided by the known pairs.
template <typename Logit>
void check_mean(const Problem<Logit>& p, const Results<Logit>& of_sums) {
  Results<Logit> mean(p);
  run_into(p, 2, true, mean, true);
  double total = 0.0, known = 0.0;
  for (std::int64_t i = 0; i < p.channels(); ++i) total += mean.sums[i];
  for (std::int64_t i = 0; i < p.channels(); ++i) known += static_cast<double>(mean.counts[i]);
  known = std::max(known, 1.0);
  check(mean.sums == of_sums.sums && mean.counts == of_sums.counts, p.name + ": mean, sums");
  check(std::abs(mean.loss[0] - total / known) <= 0x1.01p-24 * total / known, p.name + ": mean, loss");
  check(std::abs(of_sums.loss[0] - total) <= 0x1.01p-24 * total, p.name + ": loss");
  const float factor = dtype_of<Logit> == DType::float16 ? 1.0f : static_cast<float>(1.0 / known);
  bool same = true;
  for (std::int64_t i = 0; i < mean.gradient.size(); ++i) {
    const Logit scaled = from_float<Logit>(to_float(of_sums.gradient[i]) * factor);
    same &= std::memcmp(&scaled, &mean.gradient[i], sizeof(Logit)) == 0;
  }
  check(same, p.name + ": mean, gradient");
}

template <typename Logit>
void test(std::int64_t batch, std::int64_t organs, Extent low, Extent high, Labels pattern) {
  Problem<Logit> p = make_problem<Logit>(batch, organs, low, high, pattern);
  poison(p);
  const Results<Logit> one = run(p, 1);
  for (std::int64_t channel = 0; channel < p.channels(); ++channel) check_channel(p, one, channel);
  check(one.canaries_live(), p.name + ": canaries");
  // Every start of threads costs milliseconds on a busy machine: all numbers for one dtype, one for the others.
  for (const int threads : dtype_of<Logit> == DType::float32 ? std::vector{2, 3, 8} : std::vector{3}) {
    const Results<Logit> more = run(p, threads);
    check(one.same_sums(more) && one.gradient == more.gradient,
          p.name + ": other bits with threads " + std::to_string(threads));
  }
  check_mean(p, one);
  const Results<Logit> sums_only = run(p, 2, false);
  check(one.same_sums(sums_only), p.name + ": other bits without a gradient");
  check(sums_only.gradient == Results<Logit>(p).gradient, p.name + ": writes a gradient that is not wanted");
}

// A NaN that known voxels read spoils its own channel's sum, and the gradients of what those voxels read: nothing else.
template <typename Logit>
void test_poison_that_is_read(Extent low, Extent high, std::int64_t at) {
  constexpr std::int64_t kPoisoned = 2, kClean = 1;  // an organ known here and there, and one known everywhere
  Problem<Logit> p = make_problem<Logit>(1, 3, low, high, Labels::noise);
  const Results<Logit> clean = run(p, 2);
  const std::int64_t first = kPoisoned * size_of(low);
  p.logits[first + at] = from_float<Logit>(std::numeric_limits<float>::quiet_NaN());
  std::vector<bool> may_be_nan(3 * size_of(low));
  for (std::int64_t voxel = 0; voxel < size_of(high); ++voxel) {
    const auto read = taps(low, high, voxel);
    const bool reads_it = std::any_of(read.begin(), read.end(), [at](const Tap& tap) { return tap.at == at; });
    if (reads_it && p.bit(kPoisoned, voxel, 0))
      for (const Tap& tap : read) may_be_nan[first + tap.at] = true;
  }
  const Results<Logit> found = run(p, 2);
  check(std::isnan(found.sums[kPoisoned]), p.name + ": NaN is swallowed, sum");
  check(found.sums[kClean] == clean.sums[kClean], p.name + ": NaN reaches another channel");
  check(std::isnan(to_float(found.gradient[first + at])), p.name + ": NaN is swallowed, gradient");
  bool same = true;
  for (std::int64_t i = 0; i < 3 * size_of(low); ++i)
    same &= may_be_nan[i] || std::memcmp(&found.gradient[i], &clean.gradient[i], sizeof(Logit)) == 0;
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
    test<Logit>(2, 3, low, high, Labels::noise);
    test<Logit>(1, 3, low, high, Labels::runs);
  }
  for (const std::int64_t organs : {1, 13, 33, 65, 128}) test<Logit>(1, organs, {1, 5, 7}, {1, 17, 23}, Labels::runs);
  test<Logit>(1, 33, {1, 16, 3}, {1, 256, 24}, Labels::runs);
  test<Logit>(0, 3, {1, 2, 2}, {1, 4, 4}, Labels::noise);
  test<Logit>(2, 3, {1, 2, 2}, {1, 0, 4}, Labels::noise);
  test<Logit>(1, 3, {1, 0, 0}, {1, 0, 0}, Labels::noise);
  for (const std::int64_t at : {0, 7, 13, 29}) test_poison_that_is_read<Logit>({1, 5, 6}, {1, 40, 45}, at);
  test_poison_that_is_read<Logit>({2, 3, 20}, {4, 17, 140}, 30);
}

// All logits 0: every factor of the products of losses is exactly 2, the largest there is.
void test_largest_products() {
  Problem<float> p = make_problem<float>(1, 1, {1, 8, 32}, {1, 64, 256}, Labels::noise);
  std::fill(p.logits.begin(), p.logits.end(), 0.0f);
  std::fill(p.supervision.table.begin(), p.supervision.table.end(), 1u);
  const double expected = 64 * 256 * std::log(2.0);
  check(std::abs(run(p, 1).sums[0] - expected) <= 1e-9 * expected, "all logits 0");
}

template <typename Logit>
void test_memory(std::int64_t batch, std::int64_t organs, Extent low, Extent high) {
  constexpr int kThreads = 2;
  const Problem<Logit> p = make_problem<Logit>(batch, organs, low, high, Labels::runs);
  Results<Logit> results(p);
  const std::int64_t before = allocated;
  peak = before;
  run_into(p, kThreads, true, results);
  const bool all_freed = allocated == before;
  const std::int64_t extra = peak - before + kThreads * kUpsampledStack;
  const auto full = batch * organs * size_of(high) * static_cast<std::int64_t>(sizeof(Logit));
  check(extra <= full / 100, p.name + ": extra memory " + std::to_string(extra) + " of " + std::to_string(full));
  check(all_freed, p.name + ": memory is kept");
}

}  // namespace

int main() {
  on_every_cpu_capability([] {
    for_every_dtype([]<typename Logit>() { test_all<Logit>(); });
    test_largest_products();
  });
  test_memory<float>(4, 3, {1, 64, 64}, {1, 512, 512});
  test_memory<float>(1, 13, {1, 64, 64}, {1, 512, 512});
  test_memory<BFloat16>(4, 13, {1, 64, 64}, {1, 512, 512});
  test_memory<Float16>(1, 33, {1, 64, 64}, {1, 512, 512});
  test_memory<float>(1, 3, {16, 32, 32}, {64, 128, 128});
  return finish();
}
