// select_top_fraction_cpu against a stable sort: many small segments, a few long ones with scores made to mislead the
// sample or to tie, all dtypes, several threads.
#include "core/select_top_fraction/select_top_fraction.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/select_top_fraction/select_top_fraction_sample.h"
#include "kernels.h"
#include "select_oracle.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

// With kSegments each and in three dtypes: 108,000 segments, on every capability.
#if defined(__SANITIZE_THREAD__)  // every thread is started anew there: core/common/parallel.h
constexpr int kProblems = 10;
constexpr int kThreads[] = {1, 3};
constexpr std::uint32_t kDensities[] = {5};
#elif defined(__SANITIZE_ADDRESS__)
constexpr int kProblems = 40;
constexpr int kThreads[] = {1, 2, 3, 8};
constexpr std::uint32_t kDensities[] = {1, 5, 100};
#else
constexpr int kProblems = 600;
constexpr int kThreads[] = {1, 2, 3, 8};
constexpr std::uint32_t kDensities[] = {1, 5, 100};
#endif
constexpr int kSegments = 60;
constexpr int kMediumProblems = kProblems / 10;
constexpr std::int64_t kDenominator = 1000000;
struct Problem {
  std::vector<float> scores;             // rounded to the dtype by `narrowed`
  std::vector<std::uint8_t> candidates;  // any byte but 0 is a candidate
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> shares;  // in units of 1 / kDenominator
};

template <typename Score>
std::vector<Score> narrowed(std::vector<float>& scores) {
  std::vector<Score> result;
  for (float& score : scores) {
    result.push_back(from_float<Score>(score));
    score = to_float(result.back());
  }
  return result;
}

template <typename Score>
void test(Problem p, const std::string& name) {
  const std::vector<Score> scores = narrowed<Score>(p.scores);
  const auto length = static_cast<std::int64_t>(scores.size());
  std::vector<double> gamma;
  std::vector<std::uint8_t> expected(length);
  for (std::size_t segment = 0; segment < p.shares.size(); ++segment) {
    gamma.push_back(static_cast<double>(p.shares[segment]) / static_cast<double>(kDenominator));
    select_by_sorting(p.scores, p.candidates, p.offsets[segment], p.offsets[segment + 1], p.shares[segment],
                      kDenominator, expected);
  }
  on_every_cpu_capability([&] {
    for (const int threads : kThreads) {
      Guarded<std::uint8_t> selection(length);
      select_top_fraction_cpu({dtype_of<Score>, scores.data(), p.candidates.data(), length, gamma.data(),
                               p.offsets.data(), static_cast<std::int64_t>(gamma.size()), selection.data()},
                              threads);
      const std::string where = name + ", dtype " + std::to_string(static_cast<int>(dtype_of<Score>)) +
                                ", capability " + std::to_string(static_cast<int>(cpu_capability())) + ", threads " +
                                std::to_string(threads);
      check(std::equal(selection.begin(), selection.end(), expected.begin()), where);
      check(selection.canaries_live(), where + ": canaries");
    }
  });
}

void test_every_dtype(const Problem& p, const std::string& name) {
  for_every_dtype([&]<typename Score>() { test<Score>(p, name); });
}

// Segments of 0 to 60 voxels, some of them apart; many ties, both zeros, denormals, infinities, NaN.
Problem small_segments(std::mt19937& random) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const std::array<float, 12> special = {0.0f,    -0.0f,    1e-40f,
                                         -1e-40f, 1e-7f,    -1e-7f,
                                         inf,     -inf,     std::numeric_limits<float>::quiet_NaN(),
                                         1.0f,    65504.0f, -std::numeric_limits<float>::quiet_NaN()};
  std::normal_distribution<float> normal;
  Problem p;
  p.offsets.push_back(random() % 3 * (random() % 70));
  const std::uint32_t density = random() % 101, grain = 1 + random() % 64;
  for (int segment = 0; segment < kSegments; ++segment) {
    const std::uint32_t kind = random() % 8;
    p.shares.push_back(kind == 0 ? 0 : kind == 1 ? kDenominator : kind == 2 ? 1 : random() % 101 * 10000);
    p.offsets.push_back(p.offsets.back() + (random() % 6 == 0 ? 0 : random() % 61));
  }
  const std::int64_t length = p.offsets.back() + random() % 2 * (random() % 70);
  for (std::int64_t voxel = 0; voxel < length; ++voxel) {
    const float score = std::round(normal(random) * static_cast<float>(grain)) / static_cast<float>(grain);
    p.scores.push_back(random() % 4 == 0 ? special[random() % special.size()] : score);
    p.candidates.push_back(random() % 100 < density ? static_cast<std::uint8_t>(1 + random() % 255) : 0);
  }
  return p;
}

void test_small_segments() {
  std::mt19937 random(1);
  for (int problem = 0; problem < kProblems; ++problem) {
    const Problem p = small_segments(random);
    const std::string name = "small segments " + std::to_string(problem);
    test_every_dtype(p, name);
  }
}

// A score for a voxel of a long segment.
using Content = std::function<float(std::int64_t voxel)>;

// Two long segments with a gap before, between and behind them, and a short one.
Problem long_segments(const Content& content, std::uint32_t density, std::int64_t share) {
  std::mt19937 random(2);
  Problem p;
  p.offsets = {77, 77 + 40009, 77 + 40009, 40100, 40100 + 16385, 40100 + 16400};
  p.shares = {share, 0, kDenominator / 2, share, share};
  const std::int64_t length = p.offsets.back() + 66001;
  for (std::int64_t voxel = 0; voxel < length; ++voxel) {
    p.scores.push_back(content(voxel));
    p.candidates.push_back(random() % 100 < density);
  }
  return p;
}

// Changes what the sample of the first long segment will see: `change` gets every voxel of its spots.
void at_the_sampled_voxels(Problem& p, const std::function<void(std::int64_t voxel)>& change) {
  const ScoreSample sample(p.offsets[0], p.offsets[1]);
  for (int round = 0; round < ScoreSample::kRounds; ++round)
    for (std::int64_t spot = 0; spot < sample.spots(); ++spot)
      for (std::int64_t i = 0; i < ScoreSample::kSpot; ++i) change(sample.spot(spot, round) + i);
}

void test_long_segments() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::pair<const char*, Content> contents[] = {
      {"normal", [&](std::int64_t) { return normal(random); }},
      {"equal", [](std::int64_t) { return 0.75f; }},
      {"zeros", [](std::int64_t voxel) { return voxel % 3 == 0 ? 0.0f : -0.0f; }},
      {"near 1", [&](std::int64_t) { return 1.0f - 0x1p-24f * static_cast<float>(random() % 4096); }},
      {"rising", [](std::int64_t voxel) { return static_cast<float>(voxel) - 5e4f; }},
      {"falling", [](std::int64_t voxel) { return 5e4f - static_cast<float>(voxel); }},
      {"two values", [&](std::int64_t) { return random() % 100 < 34 ? 0.9f : 0.8f; }},
      {"half NaN", [&](std::int64_t) { return random() % 2 ? nan : normal(random); }},
      {"saturated", [&](std::int64_t) { return std::min(std::abs(normal(random)), 0.5f); }},
  };
  for (const auto& [name, content] : contents)
    for (const std::uint32_t density : kDensities)
      for (const std::int64_t share : {std::int64_t{1}, std::int64_t{330000}, std::int64_t{700000}, kDenominator})
        test_every_dtype(
            long_segments(content, density, share),
            std::string(name) + ", density " + std::to_string(density) + ", share " + std::to_string(share));
}

// The sample misrepresents all the other voxels: the bracket misses on either side, or the list overflows.
void test_samples_that_mislead() {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const Content content = [&](std::int64_t) { return normal(random); };
  for (const std::uint32_t density : kDensities) {
    const Problem honest = long_segments(content, density, 330000);
    for (const float lie : {-100.0f, 100.0f}) {
      Problem p = honest;
      at_the_sampled_voxels(p, [&](std::int64_t voxel) { p.scores[voxel] = lie + p.scores[voxel]; });
      test_every_dtype(p, "sample of other scores");
      at_the_sampled_voxels(p, [&](std::int64_t voxel) { p.scores[voxel] = lie; });
      test_every_dtype(p, "sample of equal scores");
    }
    Problem p = honest;
    at_the_sampled_voxels(p, [&](std::int64_t voxel) { p.candidates[voxel] = 0; });
    test_every_dtype(p, "sample without candidates");
  }
}

// Random segments long enough for the sample and the bracket.
void test_medium_segments() {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (int problem = 0; problem < kMediumProblems; ++problem) {
    const std::uint32_t density = 1 + random() % 100, grain = 1u << random() % 20;
    Problem p;
    p.offsets.push_back(random() % 200);
    for (int segment = 0; segment < 4; ++segment) {
      p.offsets.push_back(p.offsets.back() + 16385 + random() % 50000);
      p.shares.push_back(random() % 101 * 10000);
    }
    for (std::int64_t voxel = 0; voxel < p.offsets.back(); ++voxel) {
      p.scores.push_back(std::round(normal(random) * static_cast<float>(grain)) / static_cast<float>(grain));
      p.candidates.push_back(random() % 100 < density);
    }
    test_every_dtype(p, "medium segments " + std::to_string(problem));
  }
}

// A selection so large, and aligned, that it is stored past the caches.
void test_large_selection() {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  Problem p;
  p.offsets = {0, 3 << 20, (1 << 22) + 100};
  p.shares = {330000, 50000};
  for (std::int64_t voxel = 0; voxel < p.offsets.back(); ++voxel) {
    p.scores.push_back(normal(random));
    p.candidates.push_back(random() % 20 == 0);
  }
  test_every_dtype(p, "large selection");
}

void test_no_segments() {
  test<float>({{1.0f, 2.0f}, {1, 1}, {0}, {}}, "no segments");
  test<float>({{}, {}, {0}, {}}, "no voxels, no segments");
  test<float>({{}, {}, {0, 0}, {kDenominator}}, "no voxels");
}

// The op can be compiled, and then nothing has looked at the offsets: they may select anything, but in bounds.
void test_wrong_offsets() {
  const std::vector<float> scores(1000, 1.0f);
  const std::vector<std::uint8_t> candidates(1000, 1);
  const std::vector<std::int64_t> offsets = {-5, 900, 20, 3000, std::numeric_limits<std::int64_t>::min()};
  const std::vector<double> gamma = {0.5, std::numeric_limits<double>::quiet_NaN(), 7.0, -1.0};
  Guarded<std::uint8_t> selection(1000);
  select_top_fraction_cpu(
      {DType::float32, scores.data(), candidates.data(), 1000, gamma.data(), offsets.data(), 4, selection.data()}, 2);
  check(std::count(selection.begin(), selection.end(), 1) == 450 + 100, "wrong offsets: clipped");
  check(selection.canaries_live(), "wrong offsets: canaries");
}

}  // namespace

int main() {
  test_no_segments();
  test_wrong_offsets();
  test_small_segments();
  test_long_segments();
  test_samples_that_mislead();
  test_medium_segments();
  test_large_selection();
  return finish();
}
