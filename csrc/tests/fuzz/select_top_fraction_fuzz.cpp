// select_top_fraction_cpu against a stable sort.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/select_top_fraction/select_top_fraction.h"
#include "fuzz.h"
#include "tests/select_oracle.h"

namespace {

using namespace smile_fast;
using fuzz::Choices;
using fuzz::Exact;

constexpr int kMostSegments = 6;
constexpr int kLongest = 40000;  // long enough to be sampled and to have several blocks
constexpr int kPercent = 100;

struct Layout {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> percent;
  std::int64_t length;
};

Layout choose_layout(Choices& choices) {
  Layout layout;
  const bool long_ones = choices.byte() % 8 == 0;
  layout.offsets.push_back(choices.up_to(70));
  const int segments = choices.byte() % (kMostSegments + 1);
  for (int segment = 0; segment < segments; ++segment) {
    layout.offsets.push_back(layout.offsets.back() + choices.up_to(long_ones ? kLongest : 300));
    layout.percent.push_back(choices.up_to(kPercent));
  }
  layout.length = layout.offsets.back() + choices.up_to(70);
  return layout;
}

template <typename Score>
void run(Choices& choices) {
  const Layout layout = choose_layout(choices);
  const auto length = static_cast<std::size_t>(layout.length);
  fuzz::Filler filler(choices.word());
  const std::uint32_t density = choices.byte(), distinct = 1 + choices.word() % 100000;
  const int threads = 1 + choices.byte() % 3;

  Exact<Score> scores(length);
  Exact<std::uint8_t> candidates(length), selection(length);
  std::vector<float> values(length);
  for (std::size_t voxel = 0; voxel < length; ++voxel) {
    const std::uint32_t bits = choices.ended() ? filler.next() % distinct : choices.word();
    scores[voxel] = from_float<Score>(fuzz::choose_float(bits));
    values[voxel] = to_float(scores[voxel]);
    candidates[voxel] = choices.ended() ? static_cast<std::uint8_t>(filler.next() % 256 <= density) : choices.byte();
  }
  Exact<double> gamma(layout.percent.size());
  Exact<std::int64_t> offsets(layout.offsets.size());
  std::copy(layout.offsets.begin(), layout.offsets.end(), offsets.data());
  std::vector<std::uint8_t> expected(length);
  const std::vector<std::uint8_t> eligible(candidates.data(), candidates.data() + length);
  for (std::size_t segment = 0; segment < layout.percent.size(); ++segment) {
    gamma[segment] = static_cast<double>(layout.percent[segment]) / kPercent;
    testing::select_by_sorting(values, eligible, offsets[segment], offsets[segment + 1], layout.percent[segment],
                               kPercent, expected);
  }
  select_top_fraction_cpu({testing::dtype_of<Score>, scores.data(), candidates.data(), layout.length, gamma.data(),
                           offsets.data(), static_cast<std::int64_t>(gamma.size()), selection.data()},
                          threads);
  fuzz::require(length == 0 || std::memcmp(selection.data(), expected.data(), length) == 0, "selection");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::on_chosen([]<typename T>(Choices& choices) { run<T>(choices); }, data, size);
}
