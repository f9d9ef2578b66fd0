// Logits of every dtype on the device: conversions, and eight 32-bit words of them as a thread holds them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/common/cuda_kernel.cuh"
#include "core/common/float_formats.h"

namespace smile_fast::cuda {

// The bits of one element, in the low end of a word, and the number that they stand for.
template <typename Logit>
struct Format;

template <>
struct Format<float> {
  using Bits = unsigned;
  static __device__ __forceinline__ float number(unsigned bits) { return __uint_as_float(bits); }
  static __device__ __forceinline__ unsigned bits(float number) { return __float_as_uint(number); }
};

template <>
struct Format<BFloat16> {
  using Bits = unsigned short;
  static __device__ __forceinline__ float number(unsigned bits) { return __uint_as_float(bits << 16); }
  static __device__ __forceinline__ unsigned bits(float number) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(number));
  }
};

template <>
struct Format<Float16> {
  using Bits = unsigned short;
  static __device__ __forceinline__ float number(unsigned bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  }
  static __device__ __forceinline__ unsigned bits(float number) { return __half_as_ushort(__float2half_rn(number)); }
};

// 32 bytes of logits of one thread: 8 or 16 of them.
template <typename Logit>
struct Pack {
  static constexpr int kPerWord = 4 / sizeof(Logit);
  static constexpr int kCount = 8 * kPerWord;
  unsigned words[8];

  __device__ __forceinline__ float get(int element) const {
    const unsigned word = words[element / kPerWord];
    if constexpr (kPerWord == 1) return Format<Logit>::number(word);
    return Format<Logit>::number(element % 2 == 0 ? word & 0xffffu : word >> 16);
  }
  __device__ __forceinline__ void set_bits(int element, unsigned bits) {
    unsigned& word = words[element / kPerWord];
    if (kPerWord == 1 || element % 2 == 0)
      word = bits;
    else
      word |= bits << 16;
  }
  // In the order of the elements: the second of two in a word completes it.
  __device__ __forceinline__ void set(int element, float value) { set_bits(element, Format<Logit>::bits(value)); }
};

}  // namespace smile_fast::cuda
