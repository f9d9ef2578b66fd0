// What the kernels of select_top_fraction.cu share: their workspace, and how histograms find a segment's threshold.
#pragma once

#include "core/common/fraction_count.h"
#include "core/select_top_fraction/select_items.cuh"

namespace smile_fast::cuda::selection {

constexpr int kDigits = 3;
constexpr int kBins = 2048;                           // of a digit; the last has 1024
constexpr int kSpan = kSelectThreads / kSelectWarps;  // items whose ties have a sum of their own: a thread per strip

__device__ __forceinline__ int shift_of(int digit) { return digit == 0 ? 21 : digit == 1 ? 10 : 0; }
__device__ __forceinline__ unsigned mask_of(int digit) { return digit == 2 ? 1023u : 2047u; }

// What is known of a segment's threshold.
struct Threshold {
  unsigned key;     // the digits found so far, the others 0
  unsigned none;    // 1: nothing is to be selected
  Count wanted;     // candidates to select among those that share these digits
  Count remaining;  // candidates that share them
};

struct Workspace {
  WorkspaceArena arena;
  std::int64_t items;
  unsigned* keys;          // [length]: a strip's list starts at the strip's first voxel
  unsigned short* places;  // [length]: in the strip
  unsigned* sizes;         // [items, kSelectWarps]: of the lists
  Count* cleared;          // begin of what has to be 0 at the start:
  Count* histograms;       // [segments, kDigits, kBins]
  unsigned* ties;          // [items, kSelectWarps]: voxels of a strip that equal the threshold
  Count* sums_of_ties;     // [ceil(items / kSpan)]: of kSpan items each
  Threshold* thresholds;   // [segments]
  unsigned* finished;      // [segments, kDigits]: items that are in the histogram
  std::size_t cleared_bytes;

  Workspace(void* memory, std::int64_t length, std::int64_t segments)
      : arena(memory), items(item_count(length, segments)) {
    keys = arena.take<unsigned>(length);
    places = arena.take<unsigned short>(length);
    sizes = arena.take<unsigned>(items * kSelectWarps);
    const std::size_t before = arena.bytes();
    cleared = histograms = arena.take<Count>(segments * kDigits * kBins);
    ties = arena.take<unsigned>(items * kSelectWarps);
    sums_of_ties = arena.take<Count>(ceil_div(items, kSpan));
    thresholds = arena.take<Threshold>(segments);
    finished = arena.take<unsigned>(segments * kDigits);
    cleared_bytes = arena.bytes() - before;
  }
};

struct Problem {
  const void* scores;
  const std::uint8_t* candidates;
  std::int64_t length;
  const double* gamma;
  const std::int64_t* offsets;
  std::int64_t segments;
  std::uint8_t* selection;
  unsigned* keys;
  unsigned short* places;
  unsigned* sizes;
  Count* histograms;
  unsigned* ties;
  Count* sums_of_ties;
  Threshold* thresholds;
  unsigned* finished;
};

struct Shared {
  unsigned bins[kBins];
  Count sums[kSelectThreads];
  Count ties[kSelectWarps];
  bool last;
};

// a < b as scores if and only if their keys are: NaN has the lowest one, -0 and +0 the same.
__device__ __forceinline__ unsigned key_of(float score) {
  const unsigned bits = __float_as_uint(score), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0;
  return bits >> 31 ? 0x80000000u - magnitude : 0x80000000u + magnitude;
}

// core/common/fraction_count.h on the device.
__device__ __forceinline__ Count fraction_count(double gamma, Count count) {
  const double share = gamma > 1.0 ? 1.0 : gamma > 0.0 ? gamma : 0.0;  // NaN is 0
  const double product = share * static_cast<double>(count), nearest = rint(product);
  const double wanted = fabs(product - nearest) <= kIntegerTolerance * nearest ? nearest : ceil(product);
  const Count rounded = static_cast<Count>(wanted);
  return rounded < count ? rounded : count;
}

// Finds the threshold's digit in a finished histogram; all threads of the block. From the highest bin down, the wanted
// candidate is in the first one at which the sum reaches its rank.
__device__ inline void look_up(const Problem& p, std::int64_t segment, int digit, Shared& shared) {
  constexpr int kOwnBins = kBins / kSelectThreads;
  const Count* bins = p.histograms + (segment * kDigits + digit) * kBins;
  const int thread = threadIdx.x;
  Count own[kOwnBins], sum = 0;
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) sum += own[i] = __ldcg(bins + kBins - 1 - (thread * kOwnBins + i));
  shared.sums[thread] = sum;
  __syncthreads();
  Count before = 0, all = 0;
  for (int other = 0; other < kSelectThreads; ++other) {
    before += other < thread ? shared.sums[other] : 0;
    all += shared.sums[other];
  }
  Threshold& threshold = p.thresholds[segment];
  const Count wanted = digit == 0 ? fraction_count(p.gamma[segment], all) : threshold.wanted;
  const unsigned key = digit == 0 ? 0 : threshold.key;
  __syncthreads();  // all have read the threshold before one writes it
  if (digit == 0 && wanted == 0 && thread == 0) threshold = {0, 1, 0, 0};
  if (wanted <= before || wanted > before + sum) return;
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) {
    if (wanted > before && wanted <= before + own[i]) {
      const unsigned bin = kBins - 1 - (thread * kOwnBins + i);
      threshold = {key | bin << shift_of(digit), 0, wanted - before, own[i]};
      return;
    }
    before += own[i];
  }
}

// Adds the block's bins to the segment's histogram; the last block of the segment goes on to look the digit up.
__device__ __forceinline__ void finish_histogram(const Problem& p, const Item& item, int digit, Shared& shared) {
  __syncthreads();
  Count* bins = p.histograms + (item.segment * kDigits + digit) * kBins;
  for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads)
    if (shared.bins[bin] != 0) atomicAdd(bins + bin, static_cast<Count>(shared.bins[bin]));
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const std::int64_t begin = clamped(__ldg(p.offsets + item.segment), 0, p.length);
    const std::int64_t end = clamped(__ldg(p.offsets + item.segment + 1), 0, p.length);
    const unsigned done = atomicAdd(p.finished + item.segment * kDigits + digit, 1u) + 1;
    shared.last = done == items_between(begin, end);
    __threadfence();
  }
  __syncthreads();
  if (shared.last) {
    __threadfence();
    look_up(p, item.segment, digit, shared);
  }
}

__device__ __forceinline__ void clear_bins(Shared& shared) {
  for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads) shared.bins[bin] = 0;
  __syncthreads();
}

// Counts neighbours of equal digit at once: where all scores are alike, atomics on one address would take all time.
struct RunningBin {
  unsigned* bins;
  unsigned bin = 0;
  unsigned count = 0;

  __device__ __forceinline__ void add(unsigned next) {
    if (next != bin) flush();
    bin = next;
    ++count;
  }
  __device__ __forceinline__ void flush() {
    if (count != 0) atomicAdd(bins + bin, count);
    count = 0;
  }
};

}  // namespace smile_fast::cuda::selection
