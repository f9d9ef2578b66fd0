#include "core/select_top_fraction_sample.h"

#include <algorithm>
#include <cmath>

namespace smile_fast {
namespace {

constexpr std::int64_t kSpot = 16;        // neighbours looked at together: a cache line of float32 scores
constexpr int kKeysPerSpot = 4;           // neighbours resemble each other: more would only cost time
constexpr int kAhead = 16;                // spots whose memory is asked for in advance
constexpr double kDeviations = 4.0;       // half the bracket's width; the sample misleads once in 10,000 times
constexpr double kSpotsPerVolume = 0.05;  // spots = 0.05 length^(2/3) make sampling cost as much as what it leaves open

// A number that looks random, for every number (the finaliser of MurmurHash3).
std::uint64_t scrambled(std::uint64_t value) {
  value = (value ^ value >> 33) * 0xff51afd7ed558ccdull;
  value = (value ^ value >> 33) * 0xc4ceb9fe1a85ec53ull;
  return value ^ value >> 33;
}

template <typename Score>
std::int64_t take_keys(const Score* scores, const std::uint8_t* candidates, std::vector<std::int32_t>& keys) {
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < kSpot; ++i) {
    if (candidates[i] == 0) continue;
    if (found++ < kKeysPerSpot) keys.push_back(key_of(scores[i]));
  }
  return found;
}

template <typename Score>
std::int64_t take_keys(const SelectTopFractionArguments& a, std::int64_t voxel, std::vector<std::int32_t>& keys) {
  return take_keys(static_cast<const Score*>(a.scores) + voxel, a.candidates + voxel, keys);
}

std::int64_t take_keys(const SelectTopFractionArguments& a, std::int64_t voxel, std::vector<std::int32_t>& keys) {
  switch (a.dtype) {
    case DType::float32:
      return take_keys<float>(a, voxel, keys);
    case DType::bfloat16:
      return take_keys<BFloat16>(a, voxel, keys);
    case DType::float16:
      return take_keys<Float16>(a, voxel, keys);
  }
  __builtin_unreachable();
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
      spots_(static_cast<std::int64_t>(kSpotsPerVolume * std::cbrt(end - begin) * std::cbrt(end - begin)) + kParts) {}

void ScoreSample::draw(const SelectTopFractionArguments& a, int part) {
  // One spot in each of spots_ equal strata.
  const double stratum = static_cast<double>(end_ - begin_ - kSpot) / static_cast<double>(spots_);
  const auto voxel_of = [&](std::int64_t spot) {
    const double place = static_cast<double>(scrambled(static_cast<std::uint64_t>(spot)) >> 11) * 0x1p-53;
    return begin_ + static_cast<std::int64_t>((static_cast<double>(spot) + place) * stratum);
  };
  const std::int64_t size = a.dtype == DType::float32 ? 4 : 2;
  const std::int64_t first = spots_ * part / kParts, last = spots_ * (part + 1) / kParts;
  Part& drawn = parts_[part];
  for (std::int64_t spot = first; spot < last + kAhead; ++spot) {
    if (spot < last) {
      __builtin_prefetch(a.candidates + voxel_of(spot));
      __builtin_prefetch(static_cast<const char*>(a.scores) + size * voxel_of(spot));
    }
    if (spot < first + kAhead) continue;
    const std::int64_t found = take_keys(a, voxel_of(spot - kAhead), drawn.keys);
    drawn.candidates += found;
    drawn.spots_with_candidates += found > 0;
  }
}

Guess ScoreSample::guess(DType dtype, double gamma) {
  const KeyLimits limits = key_limits(dtype);
  Part& all = parts_[0];
  for (int part = 1; part < kParts; ++part) {
    all.keys.insert(all.keys.end(), parts_[part].keys.begin(), parts_[part].keys.end());
    all.candidates += parts_[part].candidates;
    all.spots_with_candidates += parts_[part].spots_with_candidates;
  }
  Bracket bracket{limits.nan(), limits.highest};
  const auto size = static_cast<std::int64_t>(all.keys.size());
  if (size == 0) return {bracket, 0};

  const auto independent = static_cast<double>(all.spots_with_candidates);
  const double error = kDeviations * std::sqrt(gamma * (1 - gamma) / independent) + kDeviations / independent;
  const auto place = [&](double share) {
    return static_cast<std::int64_t>(std::floor(share * static_cast<double>(size)));
  };
  const std::int64_t upper = place(gamma - error), middle = std::min(place(gamma), size - 1),
                     lower = place(gamma + error);
  if (upper >= 0) bracket.high = key_at(all.keys, upper);
  if (lower < size) bracket.low = key_at(all.keys, lower);
  const auto inside_of = [&](Bracket wanted) {
    return std::count_if(all.keys.begin(), all.keys.end(),
                         [&](std::int32_t key) { return wanted.low <= key && key <= wanted.high; });
  };
  // Ties of one value with the threshold fill most of the bracket: they can be told by their key, without a list.
  const std::int32_t likeliest = key_at(all.keys, middle);
  std::int64_t inside = inside_of(bracket);
  if (static_cast<double>(inside) > (4 * error + 0.05) * static_cast<double>(size) &&
      2 * inside_of({likeliest, likeliest}) >= inside)
    bracket = {likeliest, likeliest};
  const double candidates =
      static_cast<double>(all.candidates) * static_cast<double>(end_ - begin_) / static_cast<double>(spots_ * kSpot);
  return {bracket, static_cast<std::int64_t>(candidates * static_cast<double>(inside) / static_cast<double>(size))};
}

}  // namespace smile_fast
