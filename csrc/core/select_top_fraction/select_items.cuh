// How the voxels are cut up for the blocks. Every multiple of kItem starts a stretch. An item, one a block in the
// streaming pass, is what a stretch and a segment share; the boundaries of items are both lists' in one.
#pragma once

#include "core/common/cuda_kernel.cuh"

namespace smile_fast::cuda::selection {

constexpr int kSelectThreads = 256;
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kQuad = 4;                    // neighbouring voxels that a thread loads at once
constexpr int kQuads = 8;                   // of a thread in a stretch: one bit of a 32-bit mask a voxel
constexpr int kQuadStride = kWarp * kQuad;  // from a thread's quad to its next: a warp's loads are contiguous
constexpr int kWarpVoxels = kQuads * kQuadStride;
constexpr std::int64_t kItem = kSelectWarps * kWarpVoxels;  // 8,192

struct Range {
  std::int64_t begin, end;
};

struct Item {
  std::int64_t begin, end;
  std::int64_t segment;  // -1 or [segments]: before the first, after the last
};

__device__ __forceinline__ std::int64_t clamped(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// The item of a number: the boundaries are two sorted lists, and a binary search finds how many of the first
// number + 1 of them are offsets. Multiples of kItem come first among equals; items may be empty.
__device__ __forceinline__ Item item_of(std::int64_t number, const std::int64_t* offsets, std::int64_t segments,
                                        std::int64_t length) {
  const std::int64_t stretches = (length + kItem - 1) / kItem, taken = number + 1;
  std::int64_t low = taken > stretches ? taken - stretches : 0;
  std::int64_t high = taken < segments + 1 ? taken : segments + 1;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (__ldg(offsets + middle) < (taken - middle - 1) * kItem)
      low = middle + 1;
    else
      high = middle;
  }
  const std::int64_t first = (taken - low - 1) * kItem;  // -kItem where an offset below 0 comes first
  const std::int64_t last = first + kItem < length ? first + kItem : length;
  if (first < 0) return {0, 0, -1};
  Item item;
  item.segment = low - 1;
  item.begin = low > 0 ? clamped(__ldg(offsets + low - 1), first, last) : first;
  item.end = low <= segments ? clamped(__ldg(offsets + low), item.begin, last) : last;
  return item;
}

inline std::int64_t item_count(std::int64_t length, std::int64_t segments) {
  return length == 0 ? 0 : ceil_div(length, kItem) + segments + 1;
}

// Items of [begin, end) that are not empty: stretches that it touches.
__device__ __forceinline__ std::int64_t items_between(std::int64_t begin, std::int64_t end) {
  return end <= begin ? 0 : (end - 1) / kItem - begin / kItem + 1;
}

// A thread's first voxel in the stretch that starts at `stretch`; bit 8 * j + q of its mask is voxel j of quad q.
__device__ __forceinline__ std::int64_t own_voxel(std::int64_t stretch) {
  return stretch + warp_of_thread() * kWarpVoxels + lane_of_thread() * kQuad;
}
__device__ __forceinline__ int place_of(int bit) { return bit % kQuads * kQuadStride + bit / kQuads; }

}  // namespace smile_fast::cuda::selection
