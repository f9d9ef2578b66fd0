// The CUDA kernels of select_top_fraction, executed on the host, against a sort with exact counts.
#include "core/select_top_fraction/select_top_fraction_cuda.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "core/select_top_fraction/select_sample.cuh"
#include "core/select_top_fraction/select_search.cuh"
#include "cuda_emulation/emulation.h"
#include "kernels.h"
#include "select_oracle.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;
using cuda::selection::kSmall;
using cuda::selection::Range;
using cuda::selection::Segment;
using cuda::selection::Source;
using cuda::selection::Stage;

enum class Scores { random, near_one, all_bits, levels, few, one, special };

using Generator = std::mt19937;

float score_of(Scores kind, int levels, Generator& random) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float special[] = {nan, -nan, inf, -inf, 0.0f, -0.0f, 0x1p-24f, -0x1p-24f, 0x1p-140f, 1.0f, -3.0f};
  switch (kind) {
    case Scores::random:
      return std::uniform_real_distribution<float>(0.5f, 1.0f)(random);
    case Scores::near_one:
      return 1.0f - static_cast<float>(random() % 4096) * 0x1p-24f;
    case Scores::all_bits:
      return as_float(static_cast<std::uint32_t>(random()));
    case Scores::levels:
      return static_cast<float>(static_cast<int>(random()) % levels);
    case Scores::few:
      return static_cast<float>(random() % 5) / 4.0f - 0.5f;
    case Scores::one:
      return 0.75f;
    case Scores::special:
      return special[random() % std::size(special)];
  }
  return 0.0f;
}

template <typename Score>
struct Case {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> percent;  // of each segment
  Guarded<Score> scores;
  Guarded<std::uint8_t> candidates;

  Case(std::vector<std::int64_t> bounds, std::int64_t length, Scores kind, int candidate_percent,
       std::int64_t offset = 0, int levels = 40)
      : offsets(std::move(bounds)), scores(length, offset), candidates(length, offset) {
    static std::uint32_t seed = 0;
    Generator random(++seed);
    for (std::int64_t i = 0; i < length; ++i) {
      scores[i] = from_float<Score>(score_of(kind, levels, random));
      candidates[i] = static_cast<int>(random() % 100) < candidate_percent ? static_cast<std::uint8_t>(1 + i % 3) : 0;
    }
    for (std::size_t segment = 0; segment + 1 < offsets.size(); ++segment)
      percent.push_back(segment % 5 == 3 ? 100 * (segment % 2) : static_cast<std::int64_t>(random() % 101));
  }

  std::string name() const {
    return "length " + std::to_string(scores.size()) + ", segments " + std::to_string(percent.size()) + ", dtype " +
           std::to_string(static_cast<int>(dtype_of<Score>));
  }

  std::vector<std::uint8_t> expected() const {
    std::vector<std::uint8_t> selection(static_cast<std::size_t>(scores.size()), 0);
    std::vector<float> values;
    for (const Score score : scores) values.push_back(to_float(score));
    const std::vector<std::uint8_t> eligible(candidates.begin(), candidates.end());
    for (std::size_t segment = 0; segment < percent.size(); ++segment)
      select_by_sorting(values, eligible, offsets[segment], offsets[segment + 1], percent[segment], 100, selection);
    return selection;
  }
};

// What the kernels leave of their work.
struct Outcome {
  std::vector<Segment> segments;
  std::int64_t streamed;  // bytes
};

template <typename Score>
Outcome test(const Case<Score>& c, const std::string& what, std::int64_t offset = 0) {
  const std::string name = what + ", " + c.name();
  std::vector<double> gamma;
  for (const std::int64_t percent : c.percent) gamma.push_back(static_cast<double>(percent) / 100.0);
  const std::int64_t length = c.scores.size();
  Guarded<std::uint8_t> selection(length, offset);
  const SelectTopFractionArguments arguments{
      dtype_of<Score>, c.scores.data(),  c.candidates.data(),   length,
      gamma.data(),    c.offsets.data(), std::ssize(c.percent), selection.data()};
  Guarded<unsigned char> workspace(static_cast<std::int64_t>(select_top_fraction_cuda_workspace(arguments)));
  const std::int64_t launches = emulation::launches(), streamed = emulation::streamed_bytes();
  select_top_fraction_cuda(arguments, workspace.data(), nullptr);
  check(emulation::launches() - launches <= (length <= kSmall ? 2 : 7), name + ": launches");
  const std::vector<std::uint8_t> expected = c.expected();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < length; ++i) wrong += selection[i] != expected[static_cast<std::size_t>(i)];
  check(wrong == 0, name + ": wrong voxels " + std::to_string(wrong));
  check(selection.canaries_live() && workspace.canaries_live(), name + ": canaries");
  const auto* const segments = reinterpret_cast<const Segment*>(workspace.data());
  Outcome outcome{{}, emulation::streamed_bytes() - streamed};
  if (length != 0) outcome.segments.assign(segments, segments + std::ssize(c.percent));
  return outcome;
}

template <typename Score>
void test_ragged() {
  const std::int64_t item = 16384;
  // Formats differ in how a score becomes a key, which comes before everything else.
  const std::vector<Scores> kinds =
      dtype_of<Score> == DType::float32
          ? std::vector{Scores::random, Scores::all_bits, Scores::few, Scores::one, Scores::special}
      : kThreadSanitizer ? std::vector{Scores::few}
                         : std::vector{Scores::all_bits, Scores::few, Scores::special};
  for (const Scores kind : kinds) {
    const std::string name = "scores " + std::to_string(static_cast<int>(kind));
    emulation::reverse_blocks(kind == Scores::few);
    test(Case<Score>({0, 0, 37, 38, 120, 1000, 1000, 40000, 40013}, 40013, kind, 60), name);
    test(Case<Score>({5, item, item + 16, 3 * item, 3 * item, 5 * item - 1}, 5 * item + 40, kind, 100), name);
    emulation::reverse_blocks(false);
  }
  test(Case<Score>({0, 333}, 333, Scores::few, 50), "short");
  test(Case<Score>({0, 25001}, 25001, Scores::few, 50, 1), "unaligned", 1);  // no access of four voxels may be tried
  test(Case<Score>({0, 20000}, 20000, Scores::random, 0), "no candidates");
  test(Case<Score>({3, 3}, 10, Scores::random, 50), "empty segment");
  test(Case<Score>({7}, 10, Scores::random, 50), "no segment");
  test(Case<Score>({0, 0}, 0, Scores::random, 50), "empty");
}

void check_source(const Outcome& outcome, Source source, const std::string& name) {
  const Segment& segment = outcome.segments.at(0);
  check(segment.stage == Stage::chosen && segment.source == source,
        name + ": went another way, stage " + std::to_string(static_cast<int>(segment.stage)) + ", source " +
            std::to_string(static_cast<int>(segment.source)));
}

// A sampled segment of float32 between voxels of none.
Case<float> one_segment(std::int64_t length, Scores kind, int candidate_percent, int percent, int levels = 40) {
  Case<float> c({9, length - 30}, length, kind, candidate_percent, 0, levels);
  c.percent[0] = percent;
  return c;
}

// The ordinary way: all is read once, the sample beside it.
void test_read_once() {
  constexpr std::int64_t kSample = cuda::selection::kSpots * 4 * (1 + sizeof(float));
  for (const bool reversed : {true, false}) {
    if (kThreadSanitizer && reversed) continue;
    emulation::reverse_blocks(reversed);
    for (const Scores kind : {Scores::random, Scores::near_one}) {
      const auto c = one_segment(150000, kind, 100, 30);
      const Outcome outcome = test(c, "read once");
      check_source(outcome, Source::list, "read once");
      check(outcome.streamed <= 150000 * 5 + kSample, "scores are read again: " + std::to_string(outcome.streamed));
    }
  }
  emulation::reverse_blocks(false);
  const Outcome outcome = test(one_segment(150000, Scores::one, 100, 30), "all equal");
  check_source(outcome, Source::marks, "all equal");
  // The marks are read twice, by what counts ties and by what writes, and those of the last ties once more.
  check(outcome.streamed <= 150000 * (5 + 2) + kSample + 2 * 8192, "all equal: scores are read again");
  for (const int percent : {0, 100}) {
    const Outcome trivial = test(one_segment(60000, Scores::random, 100, percent), "nothing or all");
    check(trivial.streamed <= 60000, "nothing or all: scores are read");
  }
}

// More ties than a block ranks: listed; too many to be listed; and a few values of which the list holds all.
void test_ties() {
  check_source(test(one_segment(150000, Scores::levels, 30, 50, 30), "listed ties"), Source::list, "listed ties");
  check_source(test(one_segment(60000, Scores::levels, 100, 50, 40), "full list"), Source::scores, "full list");
  check_source(test(one_segment(60000, Scores::few, 100, 50), "few values"), Source::marks, "few values");
}

// The voxels that the sample looks at have other scores than all others: the bracket misses.
void test_misses() {
  const std::int64_t length = 60000;
  for (const float sampled : {-1.0f, 2.0f}) {
    for (const Scores kind : {Scores::random, Scores::all_bits, Scores::one}) {
      if (kThreadSanitizer && kind == Scores::all_bits) continue;
      for (const int percent : kThreadSanitizer ? std::vector{60} : std::vector{3, 60}) {
        auto c = one_segment(length, kind, 90, percent);
        Generator random(7);
        for (unsigned spot = 0; spot < cuda::selection::kSpots; ++spot) {
          const std::int64_t first = cuda::selection::spot_of(Range{c.offsets[0], c.offsets[1]}, spot);
          for (std::int64_t i = first; i < first + 4; ++i)
            c.scores[i] = sampled + static_cast<float>(random() % 1000) * 1e-6f;
        }
        const std::string name = "misleading sample " + std::to_string(sampled);
        check_source(test(c, name), Source::scores, name);
      }
    }
  }
}

void test_many_segments() {
  std::vector<std::int64_t> many;
  for (std::int64_t i = 0; i <= 300; ++i) many.push_back(i * 7);
  test(Case<float>(many, 2100, Scores::few, 70), "many segments");
  // More segments than there are bins for, so that bins go by voxel.
  many.push_back(many.back() + kSmall + 1);
  many.push_back(many.back() + kSmall + 2);
  test(Case<float>(many, many.back(), Scores::random, 50), "short and long segments");
}

// Offsets that decrease or leave the array, and shares that are no shares: no access outside, nothing more.
void test_bad_offsets() {
  const std::int64_t length = 70000;
  std::vector<float> scores(static_cast<std::size_t>(length));
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i * 7919 % 1009);
  std::vector<std::uint8_t> candidates(static_cast<std::size_t>(length), 1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> gamma = {0.5, nan, 0.3, 7.0};
  for (const std::vector<std::int64_t>& offsets : {std::vector<std::int64_t>{-50, 20000, 20010, 60000, 90000},
                                                   {-9, -8, -7, -6, -5},
                                                   {20000, 100, 69000, 5, 50000},
                                                   {90000, 90000, 1, 50000, 4}}) {
    // Else two blocks may write the same 1 to one voxel.
    if (kThreadSanitizer && !std::is_sorted(offsets.begin(), offsets.end())) continue;
    Guarded<std::uint8_t> selection(length);
    const SelectTopFractionArguments arguments{
        DType::float32, scores.data(), candidates.data(), length, gamma.data(), offsets.data(), 4, selection.data()};
    Guarded<unsigned char> workspace(static_cast<std::int64_t>(select_top_fraction_cuda_workspace(arguments)));
    select_top_fraction_cuda(arguments, workspace.data(), nullptr);
    check(selection.canaries_live() && workspace.canaries_live(), "bad offsets: canaries");
  }
}

void test_sizes() {
  SelectTopFractionArguments arguments{DType::float32, nullptr, nullptr, 0, nullptr, nullptr, 0, nullptr};
  for (const std::int64_t length : {std::int64_t{100000}, std::int64_t{78643200}, std::int64_t{0xffffffff}}) {
    for (const std::int64_t segments : {std::int64_t{1}, std::int64_t{420}, length / (kSmall + 1)}) {
      arguments.length = length;
      arguments.segments = segments;
      const double bytes = static_cast<double>(select_top_fraction_cuda_workspace(arguments));
      const double bound = 0.58 * static_cast<double>(length) + 8300.0 * static_cast<double>(segments) + 1000.0;
      check(bytes <= bound, "workspace of " + std::to_string(length) + ": " + std::to_string(bytes));
      const double most = 1.08 * static_cast<double>(length) + 64.0 * static_cast<double>(segments) + 1000.0;
      check(bytes <= most, "most workspace of " + std::to_string(length) + ": " + std::to_string(bytes));
    }
    const Range all{0, length}, odd{std::min<std::int64_t>(8191, length), length};
    const cuda::selection::Blocks blocks(length);
    check(blocks.of(all) == blocks.count(length) && blocks.count(length) <= 512, "blocks of " + std::to_string(length));
    for (const Range& range : {all, odd})
      check(cuda::selection::VoxelBins(range).bin(length - 1) < cuda::selection::kBins, "bins of voxels");
    check(cuda::selection::share_of(all, all, 0xfffffff0u).end == 0xfffffff0u, "the list's end");
  }
  arguments.length = std::int64_t{1} << 32;
  bool refused = false;
  try {
    select_top_fraction_cuda(arguments, nullptr, nullptr);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  check(refused, "2^32 voxels are refused");
}

}  // namespace

int main() {
  for_every_dtype([]<typename Logit>() { test_ragged<Logit>(); });
  test_read_once();
  test_ties();
  test_misses();
  test_many_segments();
  test_bad_offsets();
  test_sizes();
  return finish();
}
