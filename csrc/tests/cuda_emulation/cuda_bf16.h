// Stands in for CUDA's own header, see cuda_runtime.h.
#pragma once

#include "core/common/float_formats.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {smile_fast::from_float<smile_fast::BFloat16>(value).bits};
}
