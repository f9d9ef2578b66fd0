// Binary cross entropy of one logit on the device, and its gradient: core/masked_bce/bce.h says why it is computed like
// this.
#pragma once

#include "core/common/cuda_kernel.cuh"

namespace smile_fast::cuda {

// exp(x) for x <= 0, within 1.2 ulp, denormal results included, 0 from -104 down; NaN gives NaN. The polynomial is that
// of core/masked_bce/bce.h. 2^n goes down to n = -150: it is made as 2^(n + 64) 2^-64, of which only the last product
// rounds.
__device__ __forceinline__ float exp_nonpositive(float x) {
  constexpr float round_to_integer = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float clamped = x < -104.0f ? -104.0f : x;
  const float shifted = __fmaf_rn(clamped, 0x1.715476p+0f, round_to_integer);
  const float n = __fadd_rn(shifted, -round_to_integer);
  float r = __fmaf_rn(n, -0x1.62e4p-1f, clamped);  // ln 2 in two parts: the first has 16 bits, so its product is exact
  r = __fmaf_rn(n, -0x1.7f7d1cp-20f, r);
  float p = 0x1.6a23d0p-10f;
  p = __fmaf_rn(p, r, 0x1.123a20p-7f);
  p = __fmaf_rn(p, r, 0x1.5558f2p-5f);
  p = __fmaf_rn(p, r, 0x1.555492p-3f);
  p = __fmaf_rn(p, r, 0x1.fffffcp-2f);
  p = __fmaf_rn(p, r, 1.0f);
  p = __fmaf_rn(p, r, 1.0f);
  const float power = __uint_as_float((__float_as_uint(shifted) << 23) + ((64u + 127u) << 23));
  return __fmul_rn(__fmul_rn(p, power), 0x1p-64f);
}

// exp and division: to the last places for float32; with the approximations of the hardware, 1e-5 at worst, where the
// gradient is rounded to 16 bits.
template <typename Logit>
struct Arithmetic {
  static __device__ __forceinline__ float exp(float x) { return __expf(x); }
  static __device__ __forceinline__ float divide(float a, float b) { return __fdividef(a, b); }
};

template <>
struct Arithmetic<float> {
  static __device__ __forceinline__ float exp(float x) { return exp_nonpositive(x); }
  // b in [1, 2]: one Newton step on the hardware's reciprocal, 1 ulp.
  static __device__ __forceinline__ float divide(float a, float b) {
    const float reciprocal = __fdividef(1.0f, b);
    const float quotient = __fmul_rn(a, reciprocal);
    return __fmaf_rn(__fmaf_rn(-quotient, b, a), reciprocal, quotient);
  }
};

// The losses of up to 120 known voxels: sum of max(x, 0), and prod(1 + e) - 1.
struct LossSum {
  float linear = 0.0f;
  float excess = 0.0f;

  __device__ __forceinline__ float total() const { return linear + log1pf(excess); }
};

// One known logit z; `flip` is the sign bit where y = 1, else 0. Adds its loss; returns sigma(z) - y.
template <typename Logit>
__device__ __forceinline__ float bce(float z, unsigned flip, LossSum& sum) {
  const float x = __uint_as_float(__float_as_uint(z) ^ flip);
  const float e = Arithmetic<Logit>::exp(-fabsf(x));
  sum.linear += x < 0.0f ? 0.0f : x;  // NaN is kept
  sum.excess += __fmaf_rn(e, sum.excess, e);
  const float slope = Arithmetic<Logit>::divide(x < 0.0f ? e : 1.0f, __fadd_rn(1.0f, e));
  return __uint_as_float(__float_as_uint(slope) ^ flip);
}

// The same for a voxel that may be unknown: `keep` has all bits where it is known, none elsewhere, where z leaves no
// trace, not even as NaN.
template <typename Logit>
__device__ __forceinline__ float masked_bce(float z, unsigned flip, unsigned keep, LossSum& sum) {
  const float x = __uint_as_float((__float_as_uint(z) ^ flip) & keep);  // 0 where unknown: finite
  const float e = Arithmetic<Logit>::exp(-fabsf(x));
  const float kept = __uint_as_float(__float_as_uint(e) & keep);
  sum.linear += x < 0.0f ? 0.0f : x;
  sum.excess += __fmaf_rn(kept, sum.excess, kept);
  const float slope = Arithmetic<Logit>::divide(x < 0.0f ? e : 1.0f, __fadd_rn(1.0f, e));
  return __uint_as_float((__float_as_uint(slope) ^ flip) & keep);
}

// The sign bit, and all bits, where bit `bit` of a word is set.
__device__ __forceinline__ unsigned sign_where(unsigned word, int bit) { return (word << (31 - bit)) & 0x80000000u; }
__device__ __forceinline__ unsigned ones_where(unsigned word, int bit) {
  return static_cast<unsigned>(static_cast<int>(word << (31 - bit)) >> 31);
}

}  // namespace smile_fast::cuda
