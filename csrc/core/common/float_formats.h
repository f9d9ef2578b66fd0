// Conversions between float32 and the two 16-bit formats, written so that a compiler vectorises them.
#pragma once

#include <cstdint>

#include "core/common/cpu_capability.h"

namespace smile_fast {

enum class DType { float32, bfloat16, float16 };

// In bytes.
SMILE_FAST_INLINE std::int64_t element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

SMILE_FAST_INLINE std::uint32_t as_bits(float value) { return __builtin_bit_cast(std::uint32_t, value); }

SMILE_FAST_INLINE float as_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

SMILE_FAST_INLINE float to_float(float value) { return value; }

SMILE_FAST_INLINE float to_float(BFloat16 value) { return as_float(static_cast<std::uint32_t>(value.bits) << 16); }

SMILE_FAST_INLINE float to_float(Float16 value) {
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  // The exponent field moves up by 13 bits and its bias grows by 112; the product also normalises denormals.
  const float scaled = as_float(magnitude << 13) * 0x1p112f;
  const std::uint32_t finite = as_bits(scaled);
  const std::uint32_t special = 0x7f800000u | (magnitude << 13);  // Inf and NaN keep their payload
  return as_float((magnitude >= 0x7c00u ? special : finite) | sign);
}

template <typename T>
T from_float(float value);

template <>
SMILE_FAST_INLINE float from_float<float>(float value) {
  return value;
}

// Round to nearest, ties to even; NaN stays NaN.
template <>
SMILE_FAST_INLINE BFloat16 from_float<BFloat16>(float value) {
  const std::uint32_t bits = as_bits(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded)};
}

// Round to nearest, ties to even; NaN stays NaN; overflow becomes Inf.
template <>
SMILE_FAST_INLINE Float16 from_float<Float16>(float value) {
  const std::uint32_t bits = as_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the result is denormal: adding 0.5 lets the float adder round at bit 2^-24.
  const float shifted = as_float(magnitude) + 0.5f;
  const std::uint32_t denormal = as_bits(shifted) - 0x3f000000u;
  const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const std::uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
  const std::uint32_t overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return {static_cast<std::uint16_t>((magnitude >= 0x47800000u ? overflow : finite) | sign)};
}

}  // namespace smile_fast
