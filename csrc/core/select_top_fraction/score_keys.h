// Scores as integers in the same order, and brackets of them.
#pragma once

#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

// How a dtype's bits are read: as a sign and a magnitude.
template <typename Score>
struct ScoreFormat;
template <>
struct ScoreFormat<float> {
  using Key = std::int32_t;
  static constexpr Key infinity = 0x7f800000;
};
template <>
struct ScoreFormat<BFloat16> {
  using Key = std::int16_t;
  static constexpr Key infinity = 0x7f80;
};
template <>
struct ScoreFormat<Float16> {
  using Key = std::int16_t;
  static constexpr Key infinity = 0x7c00;
};

// Keys of 16-bit formats, too, are handed around as 32-bit integers.
struct KeyLimits {
  std::int32_t highest;                          // no key is above this one
  std::int32_t nan() const { return -highest; }  // the lowest key there is
  std::int32_t below_all() const { return -highest - 1; }
};

inline KeyLimits key_limits(DType dtype) { return {dtype == DType::float32 ? 0x7fffffff : 0x7fff}; }

// a < b as scores if and only if their keys are: -0 and +0 have the key 0, NaN the lowest one. Bits only, so that
// denormal numbers keep their order even where the thread's arithmetic flushes them to zero.
template <typename Score>
SMILE_FAST_INLINE std::int32_t key_of(Score score) {
  using Format = ScoreFormat<Score>;
  const auto bits = __builtin_bit_cast(typename Format::Key, score);
  constexpr std::int32_t highest = sizeof(Score) == 4 ? 0x7fffffff : 0x7fff;
  const std::int32_t magnitude = bits & highest;
  if (magnitude > Format::infinity) return -highest;
  return bits < 0 ? -magnitude : magnitude;
}

struct Bracket {
  std::int32_t low, high;  // both inside

  SMILE_FAST_INLINE bool single() const { return low == high; }
  SMILE_FAST_INLINE std::uint32_t width() const {
    return static_cast<std::uint32_t>(high) - static_cast<std::uint32_t>(low);
  }
};

// A bracket cut into at most 2^bits bins of equal width.
struct Bins {
  Bracket bracket;
  int shift;

  Bins(Bracket given, int bits) : bracket(given) {
    const int needed = given.width() == 0 ? 0 : 32 - __builtin_clz(given.width());
    shift = needed > bits ? needed - bits : 0;
  }
  // Of a key inside the bracket.
  SMILE_FAST_INLINE std::uint32_t bin(std::int32_t key) const {
    return (static_cast<std::uint32_t>(key) - static_cast<std::uint32_t>(bracket.low)) >> shift;
  }
  SMILE_FAST_INLINE bool holds(std::int32_t key) const { return bracket.low <= key && key <= bracket.high; }
  std::uint32_t count() const { return (bracket.width() >> shift) + 1; }
};

// A candidate whose selection is open: its key and its place in a block of voxels.
struct Entry {
  std::int32_t key;
  std::uint32_t offset;
};

}  // namespace smile_fast
