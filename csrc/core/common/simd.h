// Vectors of kLanes floats, in the compiler's own notation: one source for every capability of
// core/common/cpu_capability.h.
//
// Arithmetic, comparisons and the choice `mask ? a : b` are the compiler's operators on vector types. What stands here
// is what they lack: loads and stores at any alignment and of every dtype, and reading a float's bits.
#pragma once

#include <stdint.h>
#include <string.h>

#include "core/common/cpu_capability.h"
#include "core/common/float_formats.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {

// std::min must not be used, see core/common/cpu_capability.h.
SMILE_FAST_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

constexpr int kLanes = SMILE_FAST_LANES;

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Integers = std::int32_t __attribute__((vector_size(4 * kLanes)));  // also what a comparison gives: -1 or 0
using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));

constexpr int kDoubles = kLanes / 2;  // doubles of a vector
using Doubles = double __attribute__((vector_size(8 * kDoubles)));
using Longs = std::int64_t __attribute__((vector_size(8 * kDoubles)));
using WideDoubles = double __attribute__((vector_size(8 * kLanes)));  // Floats in double precision: two vectors

SMILE_FAST_INLINE Words bits(Floats value) { return __builtin_bit_cast(Words, value); }
SMILE_FAST_INLINE Floats floats(Words value) { return __builtin_bit_cast(Floats, value); }

SMILE_FAST_INLINE Floats splat(float value) { return Floats{} + value; }
SMILE_FAST_INLINE Words splat(std::uint32_t value) { return Words{} + value; }

// a > b ? a : b, in the one instruction that the compiler does not take for it.
SMILE_FAST_INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// a where the sign bit of x is set, else b.
SMILE_FAST_INLINE Floats where_negative(Floats x, Floats a, Floats b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (Floats)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)x);
#else
  return (Integers)x < 0 ? a : b;
#endif
}

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

// The lanes `at`, each of them in [0, kLanes), of a vector.
SMILE_FAST_INLINE Floats lanes_at(Floats value, Integers at) {
#ifdef __clang__  // lacks the builtin
  Floats chosen;
  for (int lane = 0; lane < kLanes; ++lane) chosen[lane] = value[at[lane]];
  return chosen;
#else
  return __builtin_shuffle(value, at);
#endif
}

SMILE_FAST_INLINE Floats load(const float* source) { return load_as<Floats>(source); }

// Both ways between 16 and 32 bits, the compiler's own conversion for AVX2 takes three times the instructions.
SMILE_FAST_INLINE Words widen(Halves value) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)value);
#else
  return __builtin_convertvector(value, Words);
#endif
}

// The low half of every word; the high halves are 0.
SMILE_FAST_INLINE Halves narrow(Words value) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i words = (__m256i)value;
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
  return __builtin_convertvector(value, Halves);
#endif
}

SMILE_FAST_INLINE Floats load(const BFloat16* source) { return floats(widen(load_as<Halves>(source)) << 16); }

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

// How a result leaves the core: through the caches, or past them, for what is too large to stay there until it is read.
// Past them, a line need not be read before it is written, but the address must be a multiple of kStreamAlignment.
enum class Store { cached, streamed };
constexpr std::size_t kStreamAlignment = 64;

template <Store kStore = Store::cached, typename Vector>
SMILE_FAST_INLINE void put(void* destination, Vector value) {
  if constexpr (kStore == Store::streamed) {
#ifdef __AVX512F__
    if constexpr (sizeof value == 64)
      return _mm512_stream_si512(static_cast<__m512i*>(destination), __builtin_bit_cast(__m512i, value));
#endif
#ifdef __AVX2__
    if constexpr (sizeof value == 32)
      return _mm256_stream_si256(static_cast<__m256i*>(destination), __builtin_bit_cast(__m256i, value));
#endif
#ifdef __SSE2__
    if constexpr (sizeof value == 16)
      return _mm_stream_si128(static_cast<__m128i*>(destination), __builtin_bit_cast(__m128i, value));
#endif
  }
  store_as(destination, value);
}

// To be called after the last streamed store, before another thread may read what was stored.
SMILE_FAST_INLINE void finish_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

template <Store kStore = Store::cached>
SMILE_FAST_INLINE void store(float* destination, Floats value) {
  put<kStore>(destination, value);
}

// To the nearest, ties to even. A NaN stays one if its low half is not all ones, as it is in every NaN that arithmetic
// makes, and in those that it passes on from bfloat16.
template <Store kStore = Store::cached>
SMILE_FAST_INLINE void store(BFloat16* destination, Floats value) {
  const Words from = bits(value);
  put<kStore>(destination, narrow((from + (((from >> 16) & 1u) + 0x7fffu)) >> 16));
}

template <Store kStore = Store::cached>
SMILE_FAST_INLINE void store(Float16* destination, Floats value) {
#if defined(__AVX512F__)
  put<kStore>(destination, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  put<kStore>(destination, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes; ++lane) destination[lane] = from_float<Float16>(value[lane]);
#endif
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
