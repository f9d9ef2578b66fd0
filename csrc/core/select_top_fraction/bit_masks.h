// 64 voxels as the bits of a word: comparisons of their keys, and bytes that are 0 or not.
#pragma once

#include "core/common/simd.h"
#include "core/select_top_fraction/score_keys.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {

constexpr int kGroup = 64;

using ShortKeys = std::int16_t __attribute__((vector_size(4 * kLanes)));

template <typename Score>
struct KeyVector {
  using Type = ShortKeys;
};
template <>
struct KeyVector<float> {
  using Type = Integers;
};

// The keys of a vector of scores, as key_of computes them.
template <typename Score>
SMILE_FAST_INLINE typename KeyVector<Score>::Type load_keys(const Score* scores) {
  using Format = ScoreFormat<Score>;
  using Keys = typename KeyVector<Score>::Type;
  constexpr typename Format::Key highest = sizeof(Score) == 4 ? 0x7fffffff : 0x7fff;
  const Keys bits = load_as<Keys>(scores);
  const Keys sign = bits >> (8 * sizeof(Score) - 1);
  const Keys magnitude = bits & highest;
  const Keys key = (magnitude ^ sign) - sign;
  return magnitude > Format::infinity ? Keys{} - highest : key;
}

// A mask register's bits as a number. GCC 12 keeps a 16-bit mask that was widened to 64 bits in a mask register, spills
// 16 bits of it and reloads 64, with three quarters of garbage: an empty statement moves it to a general register.
SMILE_FAST_INLINE std::uint64_t number(std::uint32_t mask) {
  asm("" : "+r"(mask));
  return mask;
}
SMILE_FAST_INLINE std::uint64_t number(std::uint64_t mask) {
  asm("" : "+r"(mask));
  return mask;
}

// Bit i: whether a[i] > b[i].
SMILE_FAST_INLINE std::uint64_t greater(Integers a, Integers b) {
#if defined(__AVX512BW__)
  return number(std::uint32_t{_mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b)});
#elif defined(__AVX2__)
  return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)(a > b)));
#elif defined(__SSE2__)
  return static_cast<std::uint32_t>(_mm_movemask_ps((__m128)(a > b)));
#else
  std::uint64_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result |= static_cast<std::uint64_t>(a[lane] > b[lane]) << lane;
  return result;
#endif
}

SMILE_FAST_INLINE std::uint64_t greater(ShortKeys a, ShortKeys b) {
#if defined(__AVX512BW__)
  return number(std::uint32_t{_mm512_cmpgt_epi16_mask((__m512i)a, (__m512i)b)});
#elif defined(__AVX2__)
  const __m256i found = (__m256i)(a > b);
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(found, found), 0x08);
  return static_cast<std::uint32_t>(_mm_movemask_epi8(_mm256_castsi256_si128(bytes)));
#elif defined(__SSE2__)
  const __m128i found = (__m128i)(a > b);
  return static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(found, _mm_setzero_si128())));
#else
  std::uint64_t result = 0;
  for (int lane = 0; lane < 2 * kLanes; ++lane) result |= static_cast<std::uint64_t>(a[lane] > b[lane]) << lane;
  return result;
#endif
}

// Bit i: whether byte i is not 0.
SMILE_FAST_INLINE std::uint64_t nonzero_bytes(const std::uint8_t* bytes) {
#if defined(__AVX512BW__)
  const __m512i value = load_as<__m512i>(bytes);
  return number(std::uint64_t{_mm512_test_epi8_mask(value, value)});
#elif defined(__SSE2__)
  std::uint64_t zero = 0;
  for (int i = 0; i < kGroup; i += 16) {
    const __m128i found = _mm_cmpeq_epi8(load_as<__m128i>(bytes + i), _mm_setzero_si128());
    zero |= static_cast<std::uint64_t>(_mm_movemask_epi8(found)) << i;
  }
  return ~zero;
#else
  std::uint64_t result = 0;
  for (int i = 0; i < kGroup; ++i) result |= static_cast<std::uint64_t>(bytes[i] != 0) << i;
  return result;
#endif
}

// Byte i becomes 1 where bit i is set, else 0. kStreamed: past the caches, where a capability can; see Store::streamed.
template <bool kStreamed>
SMILE_FAST_INLINE void store_bytes(std::uint8_t* bytes, std::uint64_t bits) {
#if defined(__AVX512BW__)
  const __m512i value = _mm512_maskz_set1_epi8(bits, 1);
  if constexpr (kStreamed)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(bytes), value);
  else
    store_as(bytes, value);
#elif defined(__AVX2__)
  // Byte i of a half holds the eight bits that bit i is among; the one of its place is left.
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  for (int half = 0; half < kGroup; half += 32) {
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits >> half)), byte_of);
    const __m256i chosen = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of);
    const __m256i value = _mm256_and_si256(chosen, _mm256_set1_epi8(1));
    if constexpr (kStreamed)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(bytes + half), value);
    else
      store_as(bytes + half, value);
  }
#else
  if (bits == 0) {
    memset(bytes, 0, kGroup);
    return;
  }
  for (int i = 0; i < kGroup; i += 8) {
    // Copies of eight bits, one in each byte, where bit i of byte i is the one wanted; then it becomes bit 0.
    const std::uint64_t chosen = ((bits >> i & 0xff) * 0x0101010101010101ull) & 0x8040201008040201ull;
    const std::uint64_t ones = (chosen + 0x7f7f7f7f7f7f7f7full) >> 7 & 0x0101010101010101ull;
    for (int byte = 0; byte < 8; ++byte) bytes[i + byte] = static_cast<std::uint8_t>(ones >> (8 * byte));
  }
#endif
}

// The lowest `count` of the bits that are set.
SMILE_FAST_INLINE std::uint64_t lowest_bits(std::uint64_t bits, std::uint32_t count) {
  std::uint64_t rest = bits;
  for (std::uint32_t i = 0; i < count && rest != 0; ++i) rest &= rest - 1;
  return bits ^ rest;
}

SMILE_FAST_INLINE std::uint32_t count_bits(std::uint64_t bits) {
  return static_cast<std::uint32_t>(__builtin_popcountll(bits));
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
