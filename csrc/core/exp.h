// exp of a number that is not positive, in float32.
#pragma once

#include <cstdint>

#include "core/float_formats.h"
#include "core/targets.h"

namespace smile_fast {

// Numerics: within 1.2 ulp (0.9 with FMA) for x in (-inf, 0], denormal results included, exactly 0 from -104 down; NaN
// gives NaN.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; ln 2 in two parts, so that r keeps all its bits.
SMILE_FAST_INLINE float exp_nonpositive(float x) {
  constexpr float round_to_integer = 0x1.8p23f;  // adding it leaves the nearest integer in the low mantissa bits
  const float clamped = x < -104.0f ? -104.0f : x;
  const float shifted = clamped * 0x1.715476p+0f + round_to_integer;
  const float n = shifted - round_to_integer;
  const float r = (clamped - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  // exp(r) = 1 + r + r^2 P(r), P the minimax polynomial of degree 4 for the relative error: 3.1e-9.
  float p = 0x1.6a23d0p-10f;
  p = p * r + 0x1.123a20p-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors: n goes down to -150, below the exponent of the smallest normal number.
  const std::int32_t exponent = static_cast<std::int32_t>(as_bits(shifted) - as_bits(round_to_integer));
  const std::int32_t half = exponent >> 1;
  const float first = as_float(static_cast<std::uint32_t>(half + 127) << 23);
  const float second = as_float(static_cast<std::uint32_t>(exponent - half + 127) << 23);
  return (p * first) * second;
}

}  // namespace smile_fast
