// Vectors of kLanes floats, in the compiler's own notation: one source for every target of core/targets.h.
//
// Arithmetic, comparisons and the choice `mask ? a : b` are the compiler's operators on vector types. What stands here
// is what they lack: loads and stores at any alignment and of every dtype, and reading a float's bits.
#pragma once

#include <stdint.h>
#include <string.h>

#include "core/float_formats.h"
#include "core/targets.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace smile_fast::SMILE_FAST_TARGET {

constexpr int kLanes = SMILE_FAST_LANES;

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Integers = std::int32_t __attribute__((vector_size(4 * kLanes)));  // also what a comparison gives: -1 or 0
using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));

SMILE_FAST_INLINE Words bits(Floats value) { return __builtin_bit_cast(Words, value); }
SMILE_FAST_INLINE Floats floats(Words value) { return __builtin_bit_cast(Floats, value); }

SMILE_FAST_INLINE Floats splat(float value) { return Floats{} + value; }
SMILE_FAST_INLINE Words splat(std::uint32_t value) { return Words{} + value; }

template <typename Vector>
SMILE_FAST_INLINE Vector load_as(const void* source) {
  Vector value;
  memcpy(&value, source, sizeof value);
  return value;
}

template <typename Vector>
SMILE_FAST_INLINE void store_as(void* destination, Vector value) {
  memcpy(destination, &value, sizeof value);
}

SMILE_FAST_INLINE Floats load(const float* source) { return load_as<Floats>(source); }

SMILE_FAST_INLINE Floats load(const BFloat16* source) {
  return floats(__builtin_convertvector(load_as<Halves>(source), Words) << 16);
}

SMILE_FAST_INLINE Floats load(const Float16* source) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(load_as<__m256i>(source));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(load_as<__m128i>(source));
#else
  Floats value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = to_float(source[lane]);
  return value;
#endif
}

SMILE_FAST_INLINE void store(float* destination, Floats value) { store_as(destination, value); }

SMILE_FAST_INLINE void store(BFloat16* destination, Floats value) {
  const Words from = bits(value);
  const Words rounded = (from + 0x7fffu + ((from >> 16) & 1u)) >> 16;
  const Words stored = (value != value) ? splat(0x7fc0u) : rounded;  // to the nearest, ties to even; NaN stays NaN
  store_as(destination, __builtin_convertvector(stored, Halves));
}

SMILE_FAST_INLINE void store(Float16* destination, Floats value) {
#if defined(__AVX512F__)
  store_as(destination, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store_as(destination, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes; ++lane) destination[lane] = from_float<Float16>(value[lane]);
#endif
}

}  // namespace smile_fast::SMILE_FAST_TARGET
