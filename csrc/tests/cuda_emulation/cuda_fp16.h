// Stands in for CUDA's own header, see cuda_runtime.h.
#pragma once

#include "core/common/float_formats.h"

struct __half {
  std::uint16_t bits;
};
inline __half __ushort_as_half(std::uint16_t bits) { return {bits}; }
inline std::uint16_t __half_as_ushort(__half value) { return value.bits; }
inline float __half2float(__half value) { return smile_fast::to_float(smile_fast::Float16{value.bits}); }
inline __half __float2half_rn(float value) { return {smile_fast::from_float<smile_fast::Float16>(value).bits}; }
