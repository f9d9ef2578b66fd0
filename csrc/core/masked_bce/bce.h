// Binary cross entropy of a vector of logits, and its gradient, for the losses of this folder.
//
// With y = 1 the sign of the logit is flipped: BCE = softplus(x) and dBCE/dx = sigma(x) for both labels, and no
// difference of nearly equal numbers is ever taken. softplus(x) = max(x, 0) + log(1 + e) with e = exp(-|x|).
//
// Logarithms are expensive, so the sum of the second halves is taken as the log of a product: `excess` holds
// prod(1 + e) - 1 per lane, and two of them combine as (1 + a)(1 + b) - 1 = a + b + ab, which keeps small values exact.
// Every factor is at most 2, so a float holds the product of kLossVectors of them, and a double that of kLossFactors.
#pragma once

#include <math.h>

#include "core/common/simd.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {

constexpr std::uint32_t kSign = 0x80000000u;
constexpr int kLossVectors = 126;
constexpr int kLossFactors = 1023;

// Adding it rounds to an integer n, and leaves n + 127 + kSpare in the low mantissa bits: the exponent of 2^(n +
// kSpare).
constexpr int kSpare = 64;
constexpr float kRoundToInteger = 0x1.8p23f + 127 + kSpare;

// p 2^n, for shifted = n + kRoundToInteger and n in [-150, 0]. NaN stays NaN.
SMILE_FAST_INLINE Floats scaled_by_power(Floats p, Floats shifted) {
#ifdef __AVX512F__
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)(shifted - kRoundToInteger));
#else
  // n may lie below the exponent of the smallest normal number: with kSpare added, it does not. The last product, which
  // takes that back, is the only one that rounds.
  return p * floats(bits(shifted) << 23) * 0x1p-64f;
#endif
}

// exp(x) for x <= 0. Numerics: within 1.2 ulp (0.9 with FMA) for x in (-inf, 0], denormal results included, exactly 0
// from -104 down; NaN gives NaN.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; ln 2 in two parts, so that r keeps all its bits.
SMILE_FAST_INLINE Floats exp_nonpositive(Floats x) {
  const Floats clamped = larger(splat(-104.0f), x);  // NaN stays NaN
  const Floats shifted = clamped * 0x1.715476p+0f + kRoundToInteger;
  const Floats n = shifted - kRoundToInteger;
  const Floats r = (clamped - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  // exp(r) = 1 + r + r^2 P(r), P the minimax polynomial of degree 4 for the relative error: 3.1e-9.
  Floats p = splat(0x1.6a23d0p-10f);
  p = p * r + 0x1.123a20p-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return scaled_by_power(p, shifted);
}

// Losses of known voxels, summed lane by lane.
struct LossSum {
  Floats linear = {};  // sum of max(x, 0)
  Floats excess = {};  // prod(1 + e) - 1
};

// One vector of margins, x = -z where y = 1 and x = z elsewhere, and its e = exp(-|x|), to which two units of x are
// open: nats, or bits. `flip` holds the sign bit where y = 1 and nothing elsewhere; `keep` all bits where the voxel is
// known and none elsewhere, where nothing is looked at for its value. Adds to `sum`, whose linear half is in the unit
// of x; returns w (sigma(z) - y) / divisor.
SMILE_FAST_INLINE Floats bce_of_margin(Floats x, Floats e, Words flip, Words keep, LossSum& sum, float divisor = 1.0f) {
  const Floats kept = floats(bits(e) & keep);
  sum.linear += floats(bits(larger(x, splat(0.0f))) & keep);
  sum.excess += kept + kept * sum.excess;
  const Floats slope = where_negative(x, e, splat(1.0f)) / (divisor + divisor * e);  // at x = -0, e is 1
  return floats((bits(slope) ^ flip) & keep);
}

// The same for a vector of logits z.
SMILE_FAST_INLINE Floats bce(Floats z, Words flip, Words keep, LossSum& sum, float divisor) {
  const Words margin = bits(z) ^ flip;
  return bce_of_margin(floats(margin), exp_nonpositive(floats(margin | kSign)), flip, keep, sum, divisor);
}

using Doubles16 = double __attribute__((vector_size(128)));
using Doubles8 = double __attribute__((vector_size(64)));
using Doubles4 = double __attribute__((vector_size(32)));
using Doubles2 = double __attribute__((vector_size(16)));

// (1 + a)(1 + b) - 1, for two lanes or for all of a vector.
template <typename Value>
SMILE_FAST_INLINE Value joined(Value a, Value b) {
  return a + (b + a * b);
}

SMILE_FAST_INLINE double lane_sum(Doubles2 value) { return value[0] + value[1]; }
SMILE_FAST_INLINE double lane_product(Doubles2 value) { return joined(value[0], value[1]); }

// The sum of a vector's lanes, and their product in the sense of `joined`, half by half.
#define SMILE_FAST_FOLD(Vector, Half)                          \
  struct Vector##Pair {                                        \
    Half low, high;                                            \
  };                                                           \
  SMILE_FAST_INLINE double lane_sum(Vector value) {            \
    const auto half = __builtin_bit_cast(Vector##Pair, value); \
    return lane_sum(half.low + half.high);                     \
  }                                                            \
  SMILE_FAST_INLINE double lane_product(Vector value) {        \
    const auto half = __builtin_bit_cast(Vector##Pair, value); \
    return lane_product(joined(half.low, half.high));          \
  }
SMILE_FAST_FOLD(Doubles4, Doubles2)
SMILE_FAST_FOLD(Doubles8, Doubles4)
SMILE_FAST_FOLD(Doubles16, Doubles8)
#undef SMILE_FAST_FOLD

// The sum of many LossSums, without a logarithm for each of them: sum = linear + small + log(product) + exponent log 2.
struct RunningLoss {
  double linear = 0.0;
  double small = 0.0;    // logarithms of factors so near to 1 that 1 + q would lose them
  double product = 1.0;  // in [1, 2)
  std::int64_t exponent = 0;

  // Adds up to kLossFactors losses. Returns whether they are numbers: false for NaN.
  template <int kWays>
  SMILE_FAST_INLINE bool add(const LossSum (&parts)[kWays]) {
    WideDoubles sums = {}, products = {};
    for (const LossSum& part : parts) {
      sums += __builtin_convertvector(part.linear, WideDoubles);
      products = joined(products, __builtin_convertvector(part.excess, WideDoubles));
    }
    const double q = lane_product(products);
    linear += lane_sum(sums) + (q - q);  // q - q: a NaN must not get lost below
    if (q < 0x1p-20) {
      small += q - 0.5 * q * q;  // log(1 + q), up to q^2 / 3 relative: 3e-13
    } else {
      const std::uint64_t grown = __builtin_bit_cast(std::uint64_t, product * (1.0 + q));
      exponent += static_cast<std::int64_t>(grown >> 52) - 1023;
      product = __builtin_bit_cast(double, (grown & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    }
    return q == q;
  }

  SMILE_FAST_INLINE double total() const {
    return linear + (small + (log(product) + static_cast<double>(exponent) * 0x1.62e42fefa39efp-1));
  }
};

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
