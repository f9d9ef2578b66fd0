// Binary cross entropy of logits that come in units of ln 2, "bits": z = t ln 2.
//
// Where a logit is interpolated, it can be scaled before that at little cost, and exp(z) = 2^t needs no reduction to
// multiples of ln 2: three multiplications fewer per logit, of fourteen.
#pragma once

#include "core/bce.h"

namespace smile_fast::SMILE_FAST_TARGET {

constexpr double kNatsPerBit = 0x1.62e42fefa39efp-1;  // ln 2

// 1 / ln 2 in two parts: with one alone, every logit would be 1.3e-8 too small. A logit beyond 2.3e38 becomes infinite.
SMILE_FAST_INLINE Floats in_bits(Floats logits) { return logits * 0x1.715476p+0f + logits * 0x1.4ae0cp-26f; }

// a > b ? a : b, in one instruction.
SMILE_FAST_INLINE Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// 2^t for t <= 0. Numerics: within 1.2 ulp, exactly 0 from -150 down; NaN gives NaN.
SMILE_FAST_INLINE Floats exp2_nonpositive(Floats t) {
  constexpr float round_to_integer = 0x1.8p23f;  // adding it leaves the nearest integer in the low mantissa bits
  const Floats clamped = maximum(splat(-150.0f), t);
  const Floats shifted = clamped + round_to_integer;
  const Floats n = shifted - round_to_integer;
  const Floats r = clamped - n;  // exact, in [-1/2, 1/2]
  // 2^r = 1 + r Q(r), Q the minimax polynomial of degree 5 for the relative error: 3.0e-9.
  Floats p = splat(0x1.416b52p-13f);
  p = p * r + 0x1.5f082ep-10f;
  p = p * r + 0x1.3b2de0p-7f;
  p = p * r + 0x1.c6af7cp-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // 2^n in two factors: n goes down to -150, below the exponent of the smallest normal number.
  const Integers exponent = (Integers)(bits(shifted) - as_bits(round_to_integer));
  const Integers half = exponent >> 1;
  const Floats first = floats((Words)(half + 127) << 23);
  const Floats second = floats((Words)(exponent - half + 127) << 23);
  return (p * first) * second;
#endif
}

// `bce` of core/bce.h for t in bits. The linear half of `sum` is in bits too; the slope is d BCE / dz.
SMILE_FAST_INLINE Floats bce_bits(Floats t, Words flip, Words keep, LossSum& sum) {
  const Words margin = bits(t) ^ flip;
  const Floats x = floats(margin);
  const Floats e = exp2_nonpositive(floats(margin | kSign));
  const Floats kept = floats(bits(e) & keep);
  sum.linear += floats(bits(maximum(x, splat(0.0f))) & keep);
  sum.excess += kept + kept * sum.excess;
  const Floats slope = (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);  // sigma(z)
  return floats((bits(slope) ^ flip) & keep);
}

}  // namespace smile_fast::SMILE_FAST_TARGET
