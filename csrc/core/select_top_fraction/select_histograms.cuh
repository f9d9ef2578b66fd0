// Histograms of a bracket's keys, and of the voxels that tie with a threshold.
#pragma once

#include "core/select_top_fraction/select_ranks.cuh"

namespace smile_fast::cuda::selection {

// A bracket cut into at most kBins bins of equal width, a power of two.
struct KeyBins {
  int low, high, shift;

  __device__ __forceinline__ KeyBins(int low, int high) : low(low), high(high) {
    const unsigned width = static_cast<unsigned>(high) - static_cast<unsigned>(low);
    const int bits = 32 - __clz(static_cast<int>(width));
    shift = bits > kBinBits ? bits - kBinBits : 0;
  }
  __device__ __forceinline__ unsigned bin(int key) const {
    return (static_cast<unsigned>(key) - static_cast<unsigned>(low)) >> shift;
  }
  __device__ __forceinline__ int first_of(unsigned bin) const {
    return static_cast<int>(static_cast<unsigned>(low) + (bin << shift));
  }
  __device__ __forceinline__ int last_of(unsigned bin) const {
    const unsigned first = static_cast<unsigned>(first_of(bin)), rest = static_cast<unsigned>(high) - first;
    const unsigned width = (1u << shift) - 1;
    return static_cast<int>(first + (rest < width ? rest : width));
  }
};

// A segment's voxels cut into at most kBins runs of whole stretches.
struct VoxelBins {
  std::int64_t first;
  int shift = 13;
  static_assert(kItem == 1 << 13, "a stretch lies in one bin");

  explicit __device__ __forceinline__ VoxelBins(const Range& range) {
    while (((range.end - range.begin) >> shift) + 2 > kBins) ++shift;
    first = range.begin >> shift;
  }
  __device__ __forceinline__ unsigned bin(std::int64_t voxel) const {
    return static_cast<unsigned>((voxel >> shift) - first);
  }
};

// One more in the bins of all valid lanes; all lanes of a warp. Lanes of equal bins are counted together as long as
// that saves atomics: where all scores are alike, those on one address would take all time.
__device__ __forceinline__ void add_to_bins(unsigned* bins, bool valid, unsigned bin) {
  constexpr int kWorth = 4;
  unsigned left = __ballot_sync(kAllLanes, valid);
  while (left != 0) {
    const int leader = 31 - __clz(static_cast<int>(left));
    const unsigned common = __shfl_sync(kAllLanes, bin, leader);
    const unsigned same = __ballot_sync(kAllLanes, valid && bin == common);
    if (lane_of_thread() == leader) atomicAdd(bins + common, static_cast<unsigned>(__popc(same)));
    valid = valid && bin != common;
    left &= ~same;
    if (__popc(same) < kWorth) break;
  }
  if (valid) atomicAdd(bins + bin, 1u);
}

template <typename T>
__device__ __forceinline__ T inclusive_warp_scan(T value) {
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const T other = __shfl_up_sync(kAllLanes, value, lanes);
    if (lane_of_thread() >= lanes) value += other;
  }
  return value;
}

// Where something of a given rank is: the bin, its rank there, and how many are there with it.
struct Place {
  unsigned bin, rank, population;
};

struct LookUp {
  unsigned warps[kSelectWarps];
  Place place;
};

// From the highest bin down or from the lowest up; empties the bins. All threads of a block of kSelectThreads.
__device__ inline Place look_up(unsigned* bins, unsigned rank, bool falling, LookUp& shared) {
  constexpr int kOwn = kBins / kSelectThreads;
  const int first = static_cast<int>(threadIdx.x) * kOwn;
  unsigned own[kOwn], sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    unsigned* const bin = bins + (falling ? kBins - 1 - (first + i) : first + i);
    sum += own[i] = __ldcg(bin);
    *bin = 0;
  }
  unsigned reached = inclusive_warp_scan(sum);
  if (lane_of_thread() == kWarp - 1) shared.warps[warp_of_thread()] = reached;
  if (threadIdx.x == 0) shared.place = {0, 1, 1};  // of decreasing offsets, which make no sense
  __syncthreads();
  for (int warp = 0; warp < warp_of_thread(); ++warp) reached += shared.warps[warp];
  unsigned before = reached - sum;
  if (rank > before && rank <= reached) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (rank > before && rank <= before + own[i])
        shared.place = {static_cast<unsigned>(falling ? kBins - 1 - (first + i) : first + i), rank - before, own[i]};
      before += own[i];
    }
  }
  __syncthreads();
  return shared.place;
}

// The part of a segment's bracket that holds the threshold, once its keys are in the bins.
__device__ __forceinline__ void narrow(Segment& next, unsigned* bins, LookUp& shared) {
  const KeyBins keys(next.low, next.high);
  const Place place = look_up(bins, next.rank, true, shared);
  next.low = keys.first_of(place.bin);
  next.high = keys.last_of(place.bin);
  next.rank = place.rank;
  next.population = place.population;
}

// What follows once the bracket, its rank and its population are known.
__device__ __forceinline__ void go_on(Segment& next) {
  const bool done = next.low == next.high && next.rank == next.population;  // all that tie are selected
  next.stage = done ? Stage::chosen : Stage::search;
  next.cut = ~0u;
}

}  // namespace smile_fast::cuda::selection
