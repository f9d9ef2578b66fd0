// Stands in for CUDA's own header where csrc/core/*.cu are compiled for the host: the part of CUDA that they use.
//
// Approximate functions are wrong here by as much as CUDA's documentation allows, in a pattern that depends on the bits
// of the argument: what is accurate with them is accurate on a GPU.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define SMILE_FAST_SHARED(Type, name) \
  Type& name = *static_cast<Type*>(::smile_fast::emulation::shared_memory(sizeof(Type)))

namespace smile_fast::emulation {

template <unsigned (*read)()>
struct Register {
  operator unsigned() const { return read(); }
};
struct ThreadIndex {
  Register<&thread_index> x;
};
struct BlockIndex {
  Register<&block_index> x;
};
struct BlockSize {
  Register<&block_size> x;
};
struct GridSize {
  Register<&grid_size> x;
};

template <typename T>
std::uint64_t to_slot(T value) {
  std::uint64_t slot = 0;
  std::memcpy(&slot, &value, sizeof value);
  return slot;
}
template <typename T>
T from_slot(std::uint64_t slot) {
  T value;
  std::memcpy(&value, &slot, sizeof value);
  return value;
}
inline void need_all_lanes(unsigned mask) {
  if (mask != 0xffffffffu) fail("a warp function that not all lanes take part in");
}

// Up to `ulps` units in the last place off, depending on the bits of the value.
inline float inexact(float value, int ulps) {
  std::uint32_t bits = static_cast<std::uint32_t>(to_slot(value));
  if ((bits & 0x7fffffffu) >= 0x7f000000u || (bits & 0x7fffffffu) < 0x00800000u) return value;
  const std::uint32_t hash = (bits * 2654435761u) >> 16;
  bits += static_cast<std::uint32_t>(static_cast<int>(hash % (2 * ulps + 1)) - ulps);
  return from_slot<float>(bits);
}

template <typename T>
const T* aligned_for_access(const T* pointer) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % sizeof(T) != 0) fail("a misaligned access");
  return pointer;
}

}  // namespace smile_fast::emulation

inline constexpr smile_fast::emulation::ThreadIndex threadIdx;
inline constexpr smile_fast::emulation::BlockIndex blockIdx;
inline constexpr smile_fast::emulation::BlockSize blockDim;
inline constexpr smile_fast::emulation::GridSize gridDim;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename T>
T __ldcs(const T* pointer) {
  smile_fast::emulation::count_streamed(sizeof(T));
  return *smile_fast::emulation::aligned_for_access(pointer);
}
template <typename T>
T __ldcg(const T* pointer) {
  return *smile_fast::emulation::aligned_for_access(pointer);
}
template <typename T>
T __ldg(const T* pointer) {
  return *smile_fast::emulation::aligned_for_access(pointer);
}
template <typename T>
void __stcs(T* pointer, T value) {
  *const_cast<T*>(smile_fast::emulation::aligned_for_access(pointer)) = value;
}

inline void __syncthreads() { smile_fast::emulation::block_barrier(); }
inline void __threadfence() { smile_fast::emulation::fence(); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  smile_fast::emulation::need_all_lanes(mask);
  std::uint64_t values[32];
  smile_fast::emulation::warp_exchange(smile_fast::emulation::to_slot(value), values);
  return smile_fast::emulation::from_slot<T>(values[(threadIdx.x % 32) ^ lanes]);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes) {
  smile_fast::emulation::need_all_lanes(mask);
  std::uint64_t values[32];
  smile_fast::emulation::warp_exchange(smile_fast::emulation::to_slot(value), values);
  const unsigned lane = threadIdx.x % 32;
  return smile_fast::emulation::from_slot<T>(values[lane >= lanes ? lane - lanes : lane]);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  smile_fast::emulation::need_all_lanes(mask);
  std::uint64_t values[32];
  smile_fast::emulation::warp_exchange(smile_fast::emulation::to_slot(value), values);
  return smile_fast::emulation::from_slot<T>(values[lane]);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  smile_fast::emulation::need_all_lanes(mask);
  std::uint64_t values[32];
  smile_fast::emulation::warp_exchange(predicate != 0, values);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= static_cast<unsigned>(values[lane]) << lane;
  return ballot;
}
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  smile_fast::emulation::need_all_lanes(mask);
  std::uint64_t values[32];
  smile_fast::emulation::warp_exchange(value, values);
  unsigned result = 0;
  for (const std::uint64_t lane : values) result |= static_cast<unsigned>(lane);
  return result;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  smile_fast::emulation::need_all_lanes(mask);
  std::uint64_t values[32];
  smile_fast::emulation::warp_exchange(value, values);
  unsigned result = 0;
  for (const std::uint64_t lane : values) result += static_cast<unsigned>(lane);
  return result;
}
inline int __reduce_max_sync(unsigned mask, int value) {
  smile_fast::emulation::need_all_lanes(mask);
  std::uint64_t values[32];
  smile_fast::emulation::warp_exchange(smile_fast::emulation::to_slot(value), values);
  int result = value;
  for (const std::uint64_t lane : values) result = std::max(result, smile_fast::emulation::from_slot<int>(lane));
  return result;
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) { return ~__reduce_or_sync(mask, ~value); }

template <typename T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

inline float __uint_as_float(unsigned bits) { return smile_fast::emulation::from_slot<float>(bits); }
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(smile_fast::emulation::to_slot(value)); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(unsigned value) { return value == 0 ? 32 : __builtin_clz(value); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __expf(float x) {
  return smile_fast::emulation::inexact(std::exp(x), 2 + static_cast<int>(std::fabs(1.173f * std::fmin(x, 200.0f))));
}
inline float __fdividef(float a, float b) { return smile_fast::emulation::inexact(a / b, 2); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  smile_fast::emulation::count_launch();
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> values(arguments...);
  smile_fast::emulation::launch(config->gridDim, config->blockDim, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}
