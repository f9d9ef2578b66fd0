// What is known of a segment from launch to launch, and the workspace.
#pragma once

#include "core/common/fraction_count.h"
#include "core/select_top_fraction/select_items.cuh"

namespace smile_fast::cuda::selection {

constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
constexpr std::int64_t kSmall = 1 << 14;        // voxels: a longer segment is sampled, and has bins and a list
constexpr std::int64_t kListedShare = 14;       // room for a 14th of the voxels; a sample leaves at most 6% open
constexpr std::int64_t kMostRangeBlocks = 512;  // of the launches after the streaming pass
constexpr unsigned kGathered = kBins / 2;       // open voxels that fit into the bins' memory
constexpr unsigned kMark = 2;                   // in the selection: a candidate that has the bracket's only key

enum class Stage : unsigned {
  settled,  // the selection is written
  none,     // nothing is selected
  all,      // all candidates are
  bracket,  // the sample's bracket is to be tried
  search,   // the threshold lies in the bracket
  chosen,   // the threshold is known; the open voxels are to be written
};

// Where the open voxels are found, those that may be in the bracket.
enum class Source : unsigned { list, marks, scores };

// Written by one block at the end of a launch, read by all in the next.
struct Segment {
  Stage stage;
  Source source;
  int low, high;        // the bracket; one key, the threshold, when that is known
  unsigned rank;        // of the threshold among the candidates in the bracket; 1 is the highest
  unsigned population;  // candidates in the bracket
  unsigned inside;      // those in the bracket of the streaming pass: the list's length
  unsigned cut;         // the last voxel, from the segment's first, that is selected although it equals the threshold
};

// Written by all blocks of a launch.
struct Counters {
  unsigned candidates, above, inside;  // of the streaming pass
  unsigned gathered;                   // of a search
  unsigned finished;                   // blocks of the running launch
};

// Of a segment: [clipped begin, clipped end).
__device__ __forceinline__ Range range_of(const std::int64_t* offsets, std::int64_t segment, std::int64_t length) {
  return {clamped(__ldg(offsets + segment), 0, length), clamped(__ldg(offsets + segment + 1), 0, length)};
}

struct Problem {
  const void* scores;
  const std::uint8_t* candidates;
  std::int64_t length;
  const double* gamma;
  const std::int64_t* offsets;
  std::int64_t segments;
  std::uint8_t* selection;
  bool aligned;        // all arrays, to four of their elements
  Segment* states;     // [segments]
  Counters* counters;  // [segments]
  unsigned* bins;      // [min(segments, length / kSmall), kBins]: 0 whenever a launch that counts in them starts
  uint2* entries;      // [length / kListedShare]: key and voxel, from the segment's first
  bool bins_by_voxel;  // which bins a segment has: those of its number, or of its first voxel
};

// Segments that are sampled are longer than kSmall, so they begin at different multiples of it.
__device__ __forceinline__ unsigned* bins_of(const Problem& p, std::int64_t segment, const Range& range) {
  return p.bins + (p.bins_by_voxel ? range.begin / kSmall : segment) * kBins;
}

struct List {
  uint2* entries;
  unsigned capacity;
};
__device__ __forceinline__ List list_of(const Problem& p, const Range& range) {
  const std::int64_t first = range.begin / kListedShare, last = range.end / kListedShare;
  return {p.entries + first, static_cast<unsigned>(last > first ? last - first : 0)};
}

// core/common/fraction_count.h on the device.
__device__ __forceinline__ unsigned fraction_count(double gamma, unsigned count) {
  const double share = gamma > 1.0 ? 1.0 : gamma > 0.0 ? gamma : 0.0;  // NaN is 0
  const double product = share * static_cast<double>(count), nearest = rint(product);
  const double wanted = fabs(product - nearest) <= kIntegerTolerance * nearest ? nearest : ceil(product);
  const unsigned rounded = static_cast<unsigned>(wanted);
  return rounded < count ? rounded : count;
}

// Whether this block is the last one of so many to come here in a launch: it then sees what all others wrote before.
__device__ __forceinline__ bool comes_last(Counters& counters, std::int64_t blocks, bool& last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&counters.finished, 1u) + 1 == static_cast<unsigned>(blocks);
    __threadfence();
    if (last) counters.finished = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

}  // namespace smile_fast::cuda::selection
