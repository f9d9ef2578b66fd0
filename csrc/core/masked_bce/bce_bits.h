// Binary cross entropy of logits that come in units of ln 2, "bits": z = t ln 2.
//
// Where a logit is interpolated, it can be scaled before that at little cost, and exp(z) = 2^t needs no reduction to
// multiples of ln 2: three multiplications fewer per logit, of fourteen.
#pragma once

#include "core/masked_bce/bce.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {

constexpr double kNatsPerBit = 0x1.62e42fefa39efp-1;  // ln 2

// 1 / ln 2 in two parts: with one alone, every logit would be 1.3e-8 too small. A logit beyond 2.3e38 becomes infinite.
SMILE_FAST_INLINE Floats in_bits(Floats logits) { return logits * 0x1.715476p+0f + logits * 0x1.4ae0cp-26f; }

// 2^t for t <= 0. Numerics: within 1.2 ulp, exactly 0 from -150 down; NaN gives NaN.
SMILE_FAST_INLINE Floats exp2_nonpositive(Floats t) {
  const Floats clamped = larger(splat(-150.0f), t);
  const Floats shifted = clamped + kRoundToInteger;
  const Floats r = clamped - (shifted - kRoundToInteger);  // exact, in [-1/2, 1/2]
  // 2^r = 1 + r Q(r), Q the minimax polynomial of degree 5 for the relative error: 3.0e-9.
  Floats p = splat(0x1.416b52p-13f);
  p = p * r + 0x1.5f082ep-10f;
  p = p * r + 0x1.3b2de0p-7f;
  p = p * r + 0x1.c6af7cp-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  p = p * r + 1.0f;
  return scaled_by_power(p, shifted);
}

// `bce` of core/masked_bce/bce.h for t in bits. The linear half of `sum` is in bits too; the slope is d BCE / dz.
SMILE_FAST_INLINE Floats bce_bits(Floats t, Words flip, Words keep, LossSum& sum) {
  const Words margin = bits(t) ^ flip;
  return bce_of_margin(floats(margin), exp2_nonpositive(floats(margin | kSign)), flip, keep, sum);
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
