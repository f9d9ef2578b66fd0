// The CUDA kernels of select_top_fraction, executed on the host, against a sort with exact counts.
#include "core/select_top_fraction/select_top_fraction_cuda.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "cuda_emulation/emulation.h"
#include "kernels.h"
#include "select_oracle.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

enum class Scores { random, few, one, special };

template <typename Score>
struct Case {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> percent;  // of each segment
  Guarded<Score> scores;
  Guarded<std::uint8_t> candidates;

  Case(std::vector<std::int64_t> bounds, std::int64_t length, Scores kind, int candidate_percent, std::int64_t offset,
       std::mt19937& random)
      : offsets(std::move(bounds)), scores(length, offset), candidates(length, offset) {
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const float special[] = {nan, -nan, inf, -inf, 0.0f, -0.0f, 0x1p-24f, -0x1p-24f, 0x1p-140f, 1.0f, -3.0f};
    std::uniform_real_distribution<float> uniform(0.5f, 1.0f);
    for (std::int64_t i = 0; i < length; ++i) {
      const float score = kind == Scores::random ? uniform(random)
                          : kind == Scores::few  ? static_cast<float>(random() % 5) / 4.0f - 0.5f
                          : kind == Scores::one  ? 0.75f
                                                 : special[random() % std::size(special)];
      scores[i] = from_float<Score>(score);
      candidates[i] = static_cast<int>(random() % 100) < candidate_percent ? 1 : 0;
    }
    for (std::size_t segment = 0; segment + 1 < offsets.size(); ++segment)
      percent.push_back(segment % 5 == 3 ? 100 * (segment % 2) : static_cast<std::int64_t>(random() % 101));
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

template <typename Score>
void test(std::vector<std::int64_t> bounds, std::int64_t length, Scores kind, int candidate_percent,
          std::int64_t offset = 0) {
  static int seed = 0;
  std::mt19937 random(static_cast<std::uint32_t>(++seed));
  const Case<Score> c(std::move(bounds), length, kind, candidate_percent, offset, random);
  std::string name = "length " + std::to_string(length) + ", segments " + std::to_string(c.percent.size()) +
                     ", dtype " + std::to_string(static_cast<int>(dtype_of<Score>)) + ", scores " +
                     std::to_string(static_cast<int>(kind)) + ", candidates " + std::to_string(candidate_percent);
  std::vector<double> gamma;
  for (const std::int64_t percent : c.percent) gamma.push_back(static_cast<double>(percent) / 100.0);
  Guarded<std::uint8_t> selection(length, offset);
  const SelectTopFractionArguments arguments{
      dtype_of<Score>, c.scores.data(),  c.candidates.data(),   length,
      gamma.data(),    c.offsets.data(), std::ssize(c.percent), selection.data()};
  Guarded<unsigned char> workspace(static_cast<std::int64_t>(select_top_fraction_cuda_workspace(arguments)));
  const std::int64_t before = emulation::launches();
  select_top_fraction_cuda(arguments, workspace.data(), nullptr);
  check(emulation::launches() - before <= 6, name + ": launches");
  const std::vector<std::uint8_t> expected = c.expected();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < length; ++i) wrong += selection[i] != expected[static_cast<std::size_t>(i)];
  check(wrong == 0, name + ": wrong voxels " + std::to_string(wrong));
  check(selection.canaries_live() && workspace.canaries_live(), name + ": canaries");
}

template <typename Score>
void test_all() {
  const std::int64_t item = 16384;
  for (const Scores kind : {Scores::random, Scores::few, Scores::one, Scores::special}) {
    test<Score>({0, 70001}, 70001, kind, 5);
    test<Score>({0, 0, 37, 38, 120, 120, 40000, 40013}, 40013, kind, 60);
    test<Score>({5, item, item + 16, 2 * item, 2 * item, 3 * item - 1}, 3 * item + 40, kind, 100);
  }
  test<Score>({0, 333}, 333, Scores::few, 50);
  test<Score>({0, 20001}, 20001, Scores::few, 50, 1);  // no 16-byte access may be tried
  test<Score>({0, 1000}, 1000, Scores::random, 0);
  test<Score>({3, 3}, 10, Scores::random, 50);
  test<Score>({7}, 10, Scores::random, 50);
  test<Score>({0, 0}, 0, Scores::random, 50);
  std::vector<std::int64_t> many;
  for (std::int64_t i = 0; i <= 300; ++i) many.push_back(i * 7);
  test<Score>(many, 2100, Scores::few, 70);
}

// Offsets that decrease or leave the array, and shares that are no shares: no access outside, nothing more.
void test_bad_offsets() {
  const std::int64_t length = 40000;
  std::vector<float> scores(static_cast<std::size_t>(length), 0.5f);
  std::vector<std::uint8_t> candidates(static_cast<std::size_t>(length), 1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> gamma = {0.5, nan, -3.0, 7.0};
  for (const std::vector<std::int64_t>& offsets : {std::vector<std::int64_t>{-50, 10, 20, 30, 90000},
                                                   {-9, -8, -7, -6, -5},
                                                   {20000, 100, 39000, 5, 30000},
                                                   {90000, 90000, 1, 50000, 4}}) {
#ifdef __SANITIZE_THREAD__
    if (!std::is_sorted(offsets.begin(), offsets.end())) continue;  // two blocks may write the same 1 to one voxel
#endif
    Guarded<std::uint8_t> selection(length);
    const SelectTopFractionArguments arguments{
        DType::float32, scores.data(), candidates.data(), length, gamma.data(), offsets.data(), 4, selection.data()};
    Guarded<unsigned char> workspace(static_cast<std::int64_t>(select_top_fraction_cuda_workspace(arguments)));
    select_top_fraction_cuda(arguments, workspace.data(), nullptr);
    check(selection.canaries_live() && workspace.canaries_live(), "bad offsets: canaries");
  }
}

}  // namespace

int main() {
  for_every_dtype([]<typename Logit>() { test_all<Logit>(); });
  // Enough items for sums of their ties: segments that begin and end inside of a sum's items and at their ends.
  const std::int64_t item = 16384;
  for (const Scores kind : {Scores::few, Scores::one})
    test<float>({9, 35 * item + 7, 36 * item, 64 * item, 64 * item + 1, 100 * item - 3}, 100 * item, kind, 2);
  test_bad_offsets();
  return finish();
}
