// The streaming pass: reads scores and candidates once and decides all voxels but those inside the sample's bracket,
// which it counts, lists and puts into bins.
//
// A voxel costs some 10 instructions: 78.6M of them a sixth of an H100's issue slots in the 157 microseconds that their
// 6 bytes take. 3 TB/s need 13 bytes a clock and SM; a block brings 48 KB in some 4,000 clocks, and 4 are resident.
#pragma once

#include "core/select_top_fraction/select_histograms.cuh"

namespace smile_fast::cuda::selection {

struct StreamShared {
  unsigned decided[kSelectWarps];  // candidates, and from bit 16 on those above the bracket
  unsigned open[kSelectWarps];
  unsigned listed;
  bool last;
  LookUp look_up;
};

struct Masks {
  unsigned candidates, above, inside;
};

// Writes a stretch's selection: 1 above the bracket, `mark` inside, else 0.
template <typename Score, bool kWhole>
__device__ __forceinline__ Masks compare(const Problem& p, std::int64_t own, const Range& range, const Limits& limits,
                                         unsigned mark) {
  Masks masks = {0, 0, 0};
  for_quads<Score, kWhole>(p, own, range, [&](int q, std::int64_t at, unsigned flags, const Quad<Score>& quad) {
    unsigned above = 0, reaching = 0;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const float score = quad.number(j);
      above |= limits.is_above(score) ? 1u << (8 * j) : 0u;
      reaching |= limits.reaches(score) ? 1u << (8 * j) : 0u;
    }
    above &= flags;
    const unsigned inside = flags & reaching & ~above;
    store_bytes<kWhole>(p.selection, at, range, above | inside * mark);
    masks.candidates |= flags << q;
    masks.above |= above << q;
    masks.inside |= inside << q;
  });
  return masks;
}

// Where nothing is to be compared: all candidates, or no voxel.
template <bool kWhole>
__device__ __forceinline__ void fill(const Problem& p, std::int64_t own, const Range& range, bool all) {
  if (all)
    for_bytes<kWhole>(p.candidates, own, range, [&](int, std::int64_t at, unsigned word) {
      store_bytes<kWhole>(p.selection, at, range, nonzero_bytes(word));
    });
  else
    for (int q = 0; q < kQuads; ++q) store_bytes<kWhole>(p.selection, own + q * kQuadStride, range, 0);
}

// Lists the voxels inside the bracket, in any order, and counts their keys.
template <typename Score>
__device__ __forceinline__ void list_open(const Problem& p, std::int64_t own, unsigned open, unsigned place,
                                          std::int64_t segment, const Range& whole) {
  const KeyBins keys(p.states[segment].low, p.states[segment].high);
  const List list = list_of(p, whole);
  unsigned* const bins = bins_of(p, segment, whole);
  for_open<Score>(p, own, open, [&](bool valid, std::int64_t voxel, int key) {
    if (valid && place < list.capacity)
      list.entries[place] = make_uint2(static_cast<unsigned>(key), static_cast<unsigned>(voxel - whole.begin));
    place += valid;
    add_to_bins(bins, valid, keys.bin(key));
  });
}

// What all counts say of a segment: whether the bracket holds the threshold, and where to go on.
template <typename Score>
__device__ __forceinline__ void conclude_stream(const Problem& p, std::int64_t number, const Range& whole,
                                                LookUp& shared) {
  Segment next = p.states[number];
  const Counters& counters = p.counters[number];
  const unsigned candidates = __ldcg(&counters.candidates), above = __ldcg(&counters.above);
  next.inside = __ldcg(&counters.inside);
  __syncthreads();  // all have read before one writes
  const unsigned wanted = fraction_count(p.gamma[number], candidates);
  const bool listed = next.low != next.high;
  unsigned* const bins = bins_of(p, number, whole);
  next.source = Source::scores;
  if (wanted == above && (next.inside == 0 || listed)) {
    next.stage = Stage::settled;
  } else if (wanted == 0) {
    next.low = next.high = Keys<Score>::kHighest;  // which no score has
    next.stage = Stage::chosen;
  } else if (wanted < above || wanted > above + next.inside) {
    const bool higher = wanted < above;
    if (listed)
      for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads) bins[bin] = 0;
    next.rank = higher ? wanted : wanted - above - next.inside;
    next.population = higher ? above : candidates - above - next.inside;
    (higher ? next.low : next.high) = higher ? next.high + 1 : next.low - 1;
    (higher ? next.high : next.low) = higher ? Keys<Score>::kHighest : Keys<Score>::kNan;
    go_on(next);
  } else {
    next.source = !listed ? Source::marks : next.inside <= list_of(p, whole).capacity ? Source::list : Source::scores;
    next.rank = wanted - above;
    next.population = next.inside;
    if (listed) narrow(next, bins, shared);
    go_on(next);
    if (next.rank == 0) next.stage = Stage::chosen;  // of the marks none is selected
  }
  if (threadIdx.x == 0) p.states[number] = next;
}

template <typename Score>
__global__ void __launch_bounds__(kSelectThreads, 4) stream_kernel(Problem p) {
  SMILE_FAST_SHARED(StreamShared, shared);
  const Item item = item_of(blockIdx.x, p.offsets, p.segments, p.length);
  if (item.begin >= item.end) return;
  const Range range{item.begin, item.end};
  const std::int64_t own = own_voxel(item.begin / kItem * kItem);
  const bool whole = is_whole(p, range), outside = item.segment < 0 || item.segment >= p.segments;
  const Stage stage = outside ? Stage::none : p.states[item.segment].stage;
  if (stage == Stage::settled) return;
  if (stage != Stage::bracket) {
    whole ? fill<true>(p, own, range, stage == Stage::all) : fill<false>(p, own, range, stage == Stage::all);
    return;
  }
  const Segment& segment = p.states[item.segment];
  Counters& counters = p.counters[item.segment];
  const bool listed = segment.low != segment.high;
  const Limits limits = limits_of<Score>(segment.low, segment.high);
  const unsigned mark = listed ? 0 : kMark;
  const Masks masks =
      whole ? compare<Score, true>(p, own, range, limits, mark) : compare<Score, false>(p, own, range, limits, mark);
  const auto own_open = static_cast<unsigned>(__popc(masks.inside));
  const unsigned open = inclusive_warp_scan(own_open);
  const unsigned decided = __reduce_add_sync(
      kAllLanes, static_cast<unsigned>(__popc(masks.candidates)) + (static_cast<unsigned>(__popc(masks.above)) << 16));
  if (lane_of_thread() == kWarp - 1) {
    shared.decided[warp_of_thread()] = decided;
    shared.open[warp_of_thread()] = open;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned all_decided = 0, all_open = 0;
    for (int warp = 0; warp < kSelectWarps; ++warp) {
      all_decided += shared.decided[warp];
      all_open += shared.open[warp];
    }
    atomicAdd(&counters.candidates, all_decided & 0xffffu);
    atomicAdd(&counters.above, all_decided >> 16);
    shared.listed = atomicAdd(&counters.inside, all_open);
  }
  __syncthreads();
  const Range all = range_of(p.offsets, item.segment, p.length);
  if (listed) {
    unsigned place = shared.listed + open - own_open;
    for (int warp = 0; warp < warp_of_thread(); ++warp) place += shared.open[warp];
    list_open<Score>(p, own, masks.inside, place, item.segment, all);
  }
  if (comes_last(counters, items_between(all.begin, all.end), shared.last))
    conclude_stream<Score>(p, item.segment, all, shared.look_up);
}

}  // namespace smile_fast::cuda::selection
