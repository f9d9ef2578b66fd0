// How the voxels are cut into items, one a block: the boundaries are the segments' and every multiple of kItem, so an
// item lies in one segment, and in one aligned stretch of kItem voxels.
#pragma once

#include "core/common/cuda_kernel.cuh"

namespace smile_fast::cuda::selection {

constexpr int kSelectThreads = 256;
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kPerThread = 16;                         // neighbouring voxels that a thread compacts at a time
constexpr int kRound = kWarp * kPerThread;             // voxels that a warp compacts at a time
constexpr int kStrip = 4 * kRound;                     // voxels of a warp: an aligned stretch, or what of it is inside
constexpr std::int64_t kItem = kSelectWarps * kStrip;  // 16,384
static_assert(kStrip <= 65536, "places in a strip are 16-bit");

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

// The number of the item that begins at `begin`, where a segment does: that of the boundary in the sorted lists.
__device__ __forceinline__ std::int64_t item_at(std::int64_t begin, std::int64_t segment, std::int64_t length) {
  const std::int64_t stretches = (length + kItem - 1) / kItem, started = begin / kItem + 1;
  return segment + (started < stretches ? started : stretches);
}

// Items of [begin, end) that are not empty.
__device__ __forceinline__ std::int64_t items_between(std::int64_t begin, std::int64_t end) {
  return end <= begin ? 0 : (end - 1) / kItem - begin / kItem + 1;
}

}  // namespace smile_fast::cuda::selection
