// What the CUDA sources share: how they launch, report errors, declare shared memory and cut up their workspace.
//
// The same sources are compiled for the host by csrc/tests/cuda_emulation, whose cuda_runtime.h takes the place of
// CUDA's: no compiler extension but those that it knows may be used.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

// The one shared object of a kernel.
#ifndef SMILE_FAST_SHARED
#define SMILE_FAST_SHARED(Type, name) __shared__ Type name
#endif

namespace smile_fast::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

using Count = unsigned long long;  // the 64-bit integer that atomicAdd knows

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Queues a kernel with one-dimensional grid and blocks; does nothing for an empty grid.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, void* stream,
            Arguments... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error(std::string(name) + ": more than 2^31 - 1 blocks");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

inline void clear(void* memory, std::size_t bytes, void* stream) {
  if (bytes != 0) check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "memset");
}

// Hands out consecutive arrays of a workspace; with a null workspace, only adds up their sizes.
class WorkspaceArena {
 public:
  explicit WorkspaceArena(void* workspace) : base_(static_cast<char*>(workspace)) {}

  template <typename T>
  T* take(std::int64_t count) {
    char* const start = base_ + bytes_;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(start);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kAlignment = 256;
  char* base_;
  std::size_t bytes_ = 0;
};

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }

// The sum over a warp in a fixed order, in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

}  // namespace smile_fast::cuda
