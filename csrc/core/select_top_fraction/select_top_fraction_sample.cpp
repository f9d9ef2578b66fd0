#include "core/select_top_fraction/select_top_fraction_sample.h"

#include <algorithm>
#include <cmath>

namespace smile_fast {
namespace {

constexpr std::size_t kMostKeys = 1 << 14;  // of a sample: neighbours resemble each other, more would only cost time
constexpr int kAhead = 16;                  // spots whose memory is asked for in advance
constexpr double kDeviations = 3.5;         // half the bracket's width; the sample misleads once in 2,000 times
constexpr double kDense = 0.2;              // share of candidates from which on more spots are looked at
constexpr std::int64_t kDenseKeys = 4;      // of each of those: they are many
constexpr double kSpots = 0.05;             // times length^(2/3): sampling then costs as much as what it leaves open

// A number that looks random, for every number (the finaliser of MurmurHash3).
std::uint64_t scrambled(std::uint64_t value) {
  value = (value ^ value >> 33) * 0xff51afd7ed558ccdull;
  value = (value ^ value >> 33) * 0xc4ceb9fe1a85ec53ull;
  return value ^ value >> 33;
}

// Appends the keys of a spot's candidates, or of those on every so many voxels.
template <typename Score>
void take_keys(const SelectTopFractionArguments& a, std::int64_t voxel, std::int64_t step,
               std::vector<std::int32_t>& keys) {
  const Score* scores = static_cast<const Score*>(a.scores);
  for (std::int64_t i = voxel; i < voxel + ScoreSample::kSpot; i += step)
    if (a.candidates[i] != 0) keys.push_back(key_of(scores[i]));
}

// The key at a place of the sample in falling order.
std::int32_t key_at(std::vector<std::int32_t>& keys, std::int64_t place) {
  std::nth_element(keys.begin(), keys.begin() + place, keys.end(), std::greater<>());
  return keys[place];
}

}  // namespace

ScoreSample::ScoreSample(std::int64_t begin, std::int64_t end)
    : begin_(begin),
      end_(end),
      spots_(kParts + static_cast<std::int64_t>(kSpots * std::pow(std::cbrt(static_cast<double>(end - begin)), 2))) {}

std::int64_t ScoreSample::spot(std::int64_t index, int round) const {
  const double stratum = static_cast<double>(end_ - begin_ - kSpot) / static_cast<double>(spots_);
  const auto random = scrambled(static_cast<std::uint64_t>(index * kRounds + round));
  const double place = static_cast<double>(random >> 11) * 0x1p-53;  // in [0, 1)
  return begin_ + static_cast<std::int64_t>((static_cast<double>(index) + place) * stratum);
}

void ScoreSample::draw(const SelectTopFractionArguments& a, int part) {
  draw(a, part, 0, 1);
  // Many candidates are many open ones: a narrower bracket is then worth its price.
  Part& drawn = parts_[part];
  drawn.found = static_cast<std::int64_t>(drawn.keys.size());
  if (static_cast<double>(drawn.found) < kDense * static_cast<double>(spots_ / kParts * kSpot)) return;
  for (int round = 1; round < kRounds; ++round) draw(a, part, round, kSpot / kDenseKeys);
}

void ScoreSample::draw(const SelectTopFractionArguments& a, int part, int round, std::int64_t step) {
  const std::int64_t size = element_size(a.dtype);
  const auto take = a.dtype == DType::float32    ? take_keys<float>
                    : a.dtype == DType::bfloat16 ? take_keys<BFloat16>
                                                 : take_keys<Float16>;
  const std::int64_t first = spots_ * part / kParts, last = spots_ * (part + 1) / kParts;
  Part& drawn = parts_[part];
  for (std::int64_t index = first; index < last + kAhead; ++index) {
    if (index < last) {
      __builtin_prefetch(a.candidates + spot(index, round));
      __builtin_prefetch(static_cast<const char*>(a.scores) + size * spot(index, round));
    }
    if (index < first + kAhead) continue;
    const std::size_t before = drawn.keys.size();
    take(a, spot(index - kAhead, round), step, drawn.keys);
    drawn.spots_with_candidates += drawn.keys.size() > before;
  }
}

Guess ScoreSample::guess(DType dtype, double gamma) {
  const KeyLimits limits = key_limits(dtype);
  std::size_t drawn = 0;
  std::int64_t spots_with_candidates = 0, found = 0;
  for (const Part& part : parts_) {
    drawn += part.keys.size();
    found += part.found;
    spots_with_candidates += part.spots_with_candidates;
  }
  // Every candidate counts alike, whether it has candidates beside it or not.
  const std::size_t step = drawn / kMostKeys + 1;
  std::vector<std::int32_t> keys;
  std::size_t skip = 0;
  for (const Part& part : parts_) {
    for (; skip < part.keys.size(); skip += step) keys.push_back(part.keys[skip]);
    skip -= part.keys.size();
  }
  Bracket bracket{limits.nan(), limits.highest};
  const auto size = static_cast<std::int64_t>(keys.size());
  if (size == 0) return {bracket, 0};

  const auto independent = static_cast<double>(std::min(spots_with_candidates, size));
  const double error = kDeviations * std::sqrt(gamma * (1 - gamma) / independent) + kDeviations / independent;
  const auto place = [&](double share) {
    return static_cast<std::int64_t>(std::floor(share * static_cast<double>(size)));
  };
  const std::int64_t upper = place(gamma - error), middle = std::min(place(gamma), size - 1),
                     lower = place(gamma + error);
  if (upper >= 0) bracket.high = key_at(keys, upper);
  if (lower < size) bracket.low = key_at(keys, lower);
  const auto inside_of = [&](Bracket wanted) {
    return std::count_if(keys.begin(), keys.end(),
                         [&](std::int32_t key) { return wanted.low <= key && key <= wanted.high; });
  };
  // Ties of one value with the threshold fill most of the bracket: their key identifies them, without a list.
  const std::int32_t likeliest = key_at(keys, middle);
  const std::int64_t inside = inside_of(bracket);
  if (static_cast<double>(inside) > (4 * error + 0.05) * static_cast<double>(size) &&
      2 * inside_of({likeliest, likeliest}) >= inside)
    return {{likeliest, likeliest}, 0};
  const double candidates =
      static_cast<double>(found) * static_cast<double>(end_ - begin_) / static_cast<double>(spots_ * kSpot);
  return {bracket, static_cast<std::int64_t>(candidates * static_cast<double>(inside) / static_cast<double>(size))};
}

}  // namespace smile_fast
