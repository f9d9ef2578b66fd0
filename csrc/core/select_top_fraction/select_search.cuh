// The launches after the streaming pass. A step cuts what a segment's bracket leaves open to a 2,048th, or ends the
// search; where a segment needs none, its blocks return at once.
#pragma once

#include "core/select_top_fraction/select_stream.cuh"

namespace smile_fast::cuda::selection {

enum class Action {
  narrow,  // bins of keys
  ties,    // bins of voxels, whose keys are all the threshold's
  gather,  // all that are left, which a block ranks
};

struct SearchShared {
  unsigned bins[kBins];
  unsigned found[kSelectThreads / kWarp];  // segments, one bit each
  unsigned warps[kSelectWarps];
  unsigned cut;
  bool last;
  LookUp look_up;
  BlockSlots slots;
};

// The voxels of a block: whole stretches, as many for each of them.
struct Blocks {
  std::int64_t voxels;  // of a block

  explicit __device__ __host__ __forceinline__ Blocks(std::int64_t length) {
    const std::int64_t stretches = (length + kItem - 1) / kItem;
    voxels = (stretches + kMostRangeBlocks - 1) / kMostRangeBlocks * kItem;
  }
  __device__ __host__ __forceinline__ std::int64_t count(std::int64_t length) const {
    return (length + voxels - 1) / voxels;
  }
  // That share the segment.
  __device__ __forceinline__ std::int64_t of(const Range& segment) const {
    return (segment.end - 1) / voxels - segment.begin / voxels + 1;
  }
};

// Calls body(segment, its range, the block's part of it) for the segments of this stage that the block has voxels of.
template <typename Body>
__device__ __forceinline__ void for_segments(const Problem& p, Stage stage, unsigned (&found)[kSelectWarps],
                                             const Body& body) {
  const std::int64_t voxels = Blocks(p.length).voxels;
  const Range own{blockIdx.x * voxels, clamped((blockIdx.x + 1) * voxels, 0, p.length)};
  std::int64_t low = 0, high = p.segments;  // the first segment that ends behind the block's first voxel
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (__ldg(p.offsets + middle + 1) <= own.begin)
      low = middle + 1;
    else
      high = middle;
  }
  for (std::int64_t first = low; first < p.segments; first += kSelectThreads) {
    const std::int64_t number = first + threadIdx.x;
    bool mine = false;
    if (number < p.segments) {
      const Range range = range_of(p.offsets, number, p.length);
      mine =
          range.begin < range.end && range.begin < own.end && range.end > own.begin && p.states[number].stage == stage;
    }
    const unsigned warp = __ballot_sync(kAllLanes, mine);
    if (lane_of_thread() == 0) found[warp_of_thread()] = warp;
    __syncthreads();
    for (int i = 0; i < kSelectWarps; ++i) {
      for (unsigned left = found[i]; left != 0; left &= left - 1) {
        const std::int64_t segment = first + i * kWarp + 31 - __clz(static_cast<int>(left & (~left + 1)));
        const Range range = range_of(p.offsets, segment, p.length);
        body(segment, range, Range{clamped(range.begin, own.begin, own.end), clamped(range.end, own.begin, own.end)});
      }
    }
    if (first + kSelectThreads < p.segments && __ldg(p.offsets + first + kSelectThreads) >= own.end) break;
    __syncthreads();  // all have read what was found
  }
}

// A block's share of a list: as its share of the voxels.
struct Share {
  unsigned begin, end;
};
__device__ __forceinline__ Share share_of(const Range& part, const Range& range, unsigned size) {
  const auto length = static_cast<std::uint64_t>(range.end - range.begin);
  return {static_cast<unsigned>(static_cast<std::uint64_t>(part.begin - range.begin) * size / length),
          static_cast<unsigned>(static_cast<std::uint64_t>(part.end - range.begin) * size / length)};
}

// Calls visit(valid, entry) for a share of the list, all lanes of a warp at a time; loads four before it visits one.
template <typename Visit>
__device__ __forceinline__ void for_entries(const uint2* entries, const Share& share, const Visit& visit) {
  constexpr int kAtOnce = 4;
  for (unsigned first = share.begin; first < share.end; first += kAtOnce * kSelectThreads) {
    uint2 found[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const unsigned entry = first + i * kSelectThreads + threadIdx.x;
      if (entry < share.end) found[i] = __ldcg(entries + entry);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) visit(first + i * kSelectThreads + threadIdx.x < share.end, found[i]);
  }
}

// The thread's voxels of a stretch that are in the bracket, from marks or from scores.
template <typename Score>
__device__ __forceinline__ unsigned open_of(const Problem& p, const Segment& segment, std::int64_t own,
                                            const Range& range) {
  unsigned open = 0;
  if (segment.source == Source::marks) {
    const auto add = [&](int q, std::int64_t, unsigned word) { open |= (word / kMark & 0x01010101u) << q; };
    is_whole(p, range) ? for_bytes<true>(p.selection, own, range, add) : for_bytes<false>(p.selection, own, range, add);
    return open;
  }
  const auto add = [&](int q, std::int64_t, unsigned flags, const Quad<Score>& quad) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const int key = Keys<Score>::of_bits(quad.bits(j));
      if (key >= segment.low && key <= segment.high) open |= (flags & 1u << (8 * j)) << q;
    }
  };
  is_whole(p, range) ? for_quads<Score, true>(p, own, range, add) : for_quads<Score, false>(p, own, range, add);
  return open;
}

// Calls body(the thread's first voxel, what of the stretch is in the part) for its stretches.
template <typename Body>
__device__ __forceinline__ void for_stretches(const Range& part, const Body& body) {
  for (std::int64_t stretch = part.begin / kItem * kItem; stretch < part.end; stretch += kItem) {
    const Range range{part.begin > stretch ? part.begin : stretch,
                      part.end < stretch + kItem ? part.end : stretch + kItem};
    body(own_voxel(stretch), range);
  }
}

// Calls visit(valid, voxel, key) for what the block's part of a segment leaves open.
template <typename Score, typename Visit>
__device__ __forceinline__ void for_candidates(const Problem& p, const Segment& segment, const Range& range,
                                               const Range& part, const Visit& visit) {
  if (segment.source == Source::list) {
    for_entries(list_of(p, range).entries, share_of(part, range, segment.inside), [&](bool valid, uint2 entry) {
      const int key = static_cast<int>(entry.x);
      const std::int64_t voxel = range.begin + entry.y;
      visit(valid && key >= segment.low && key <= segment.high && voxel < range.end, voxel, key);
    });
  } else {
    for_stretches(part, [&](std::int64_t own, const Range& stretch) {
      for_open<Score>(p, own, open_of<Score>(p, segment, own, stretch), visit);
    });
  }
}

// The last tie that is selected, the rank-th of those in the given voxels, in their order.
template <typename Score>
__device__ __forceinline__ unsigned cut_in(const Problem& p, Segment segment, const Range& range, const Range& voxels,
                                           unsigned rank, SearchShared& shared) {
  if (segment.source == Source::list) segment.source = Source::scores;
  if (threadIdx.x == 0) shared.cut = ~0u;
  for_stretches(voxels, [&](std::int64_t own, const Range& stretch) {
    const unsigned open = open_of<Score>(p, segment, own, stretch);
    const unsigned sum = __reduce_add_sync(kAllLanes, static_cast<unsigned>(__popc(open)));
    __syncthreads();
    if (lane_of_thread() == 0) shared.warps[warp_of_thread()] = sum;
    __syncthreads();
    unsigned before = 0, all = 0;
    for (int warp = 0; warp < kSelectWarps; ++warp) {
      before += warp < warp_of_thread() ? shared.warps[warp] : 0;
      all += shared.warps[warp];
    }
    for (int q = 0; q < kQuads; ++q) {
      const unsigned mine = open >> q & 0x01010101u;
      const unsigned reached = before + inclusive_warp_scan(static_cast<unsigned>(__popc(mine)));
      unsigned next = reached - __popc(mine);
      for (int j = 0; j < kQuad; ++j) {
        if ((mine >> (8 * j) & 1u) == 0) continue;
        if (++next == rank) shared.cut = static_cast<unsigned>(own + q * kQuadStride + j - range.begin);
      }
      before = __shfl_sync(kAllLanes, reached, kWarp - 1);
    }
    rank = rank > all ? rank - all : 0;
  });
  __syncthreads();
  return shared.cut;
}

// Ranks the few that are left.
__device__ __forceinline__ void rank_gathered(Segment& next, const Range& range, const uint2* gathered,
                                              SearchShared& shared) {
  constexpr int kOwn = kGathered / kSelectThreads;
  BlockReduction block(shared.slots);
  int keys[kOwn];
  unsigned offsets[kOwn];
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const unsigned place = k * kSelectThreads + threadIdx.x;
    const bool valid = place < next.population;
    const uint2 entry = valid ? __ldcg(gathered + place) : make_uint2(0, 0);
    keys[k] = valid ? static_cast<int>(entry.x) : kNoKey;
    offsets[k] = entry.y;
  }
  const unsigned ranks[1] = {next.rank};
  int low[1] = {next.low}, high[1] = {next.high};
  find_ranks(keys, ranks, low, high, block);
  next.low = next.high = low[0];
  unsigned counts = 0;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) counts += (keys[k] > low[0] ? 1u : 0u) + (keys[k] == low[0] ? 1u << 16 : 0u);
  counts = block.sum(counts);
  const unsigned ties = next.rank - (counts & 0xffffu);
  const int bits = 32 - __clz(static_cast<int>(static_cast<unsigned>(range.end - range.begin)));
  if (ties < counts >> 16) next.cut = find_cut(keys, low[0], ties, bits, [&](int k) { return offsets[k]; }, block);
}

template <typename Score>
__device__ __forceinline__ void conclude_step(const Problem& p, std::int64_t number, const Range& range, Action action,
                                              SearchShared& shared) {
  Segment next = p.states[number];
  __syncthreads();  // all have read before one writes
  unsigned* const bins = bins_of(p, number, range);
  if (action == Action::narrow) {
    narrow(next, bins, shared.look_up);
    go_on(next);
  } else {
    next.stage = Stage::chosen;
    if (action == Action::gather) {
      rank_gathered(next, range, reinterpret_cast<const uint2*>(bins), shared);
    } else {
      const VoxelBins voxels(range);
      const Place place = look_up(bins, next.rank, false, shared.look_up);
      const std::int64_t first = (voxels.first + place.bin) << voxels.shift, last = first + (1ll << voxels.shift);
      next.cut =
          cut_in<Score>(p, next, range, {clamped(first, range.begin, range.end), clamped(last, range.begin, range.end)},
                        place.rank, shared);
    }
  }
  if (threadIdx.x == 0) p.states[number] = next;
}

template <typename Score>
__device__ __forceinline__ void step(const Problem& p, std::int64_t number, const Range& range, const Range& part,
                                     SearchShared& shared) {
  const Segment segment = p.states[number];
  Counters& counters = p.counters[number];
  const Action action = segment.population <= kGathered ? Action::gather
                        : segment.low < segment.high    ? Action::narrow
                                                        : Action::ties;
  unsigned* const bins = bins_of(p, number, range);
  const KeyBins keys(segment.low, segment.high);
  const VoxelBins voxels(range);
  for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads) shared.bins[bin] = 0;
  __syncthreads();
  if (action == Action::ties && segment.source != Source::list) {
    for_stretches(part, [&](std::int64_t own, const Range& stretch) {
      const auto ties = static_cast<unsigned>(__popc(open_of<Score>(p, segment, own, stretch)));
      const unsigned sum = __reduce_add_sync(kAllLanes, ties);
      if (lane_of_thread() == 0) atomicAdd(shared.bins + voxels.bin(stretch.begin), sum);
    });
  } else {
    for_candidates<Score>(p, segment, range, part, [&](bool valid, std::int64_t voxel, int key) {
      if (action == Action::narrow) {
        add_to_bins(shared.bins, valid, keys.bin(key));
      } else if (action == Action::ties) {
        add_to_bins(shared.bins, valid, voxels.bin(voxel));
      } else if (valid) {
        const unsigned place = atomicAdd(&counters.gathered, 1u);
        const uint2 entry = make_uint2(static_cast<unsigned>(key), static_cast<unsigned>(voxel - range.begin));
        if (place < kGathered) reinterpret_cast<uint2*>(bins)[place] = entry;
      }
    });
  }
  __syncthreads();
  if (action != Action::gather)
    for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads)
      if (shared.bins[bin] != 0) atomicAdd(bins + bin, shared.bins[bin]);
  if (comes_last(counters, Blocks(p.length).of(range), shared.last))
    conclude_step<Score>(p, number, range, action, shared);
}

template <typename Score>
__global__ void __launch_bounds__(kSelectThreads, 3) search_kernel(Problem p) {
  SMILE_FAST_SHARED(SearchShared, shared);
  for_segments(p, Stage::search, shared.found, [&](std::int64_t number, const Range& range, const Range& part) {
    step<Score>(p, number, range, part, shared);
  });
}

// Writes what the streaming pass left open of a stretch: the marks, or all voxels where the bracket missed.
template <typename Score, bool kWhole>
__device__ __forceinline__ void write_stretch(const Problem& p, const Segment& segment, std::int64_t own,
                                              const Range& range, std::int64_t begin) {
  const auto keeps = [&](std::int64_t voxel) { return static_cast<unsigned>(voxel - begin) <= segment.cut; };
  if (segment.source == Source::marks) {
    for_bytes<kWhole>(p.selection, own, range, [&](int, std::int64_t at, unsigned word) {
      const unsigned marks = word / kMark & 0x01010101u;
      if (marks == 0) return;
      unsigned chosen = word & 0x01010101u;
      for (int j = 0; j < kQuad; ++j)
        if (segment.rank != 0 && keeps(at + j)) chosen |= marks & 1u << (8 * j);
      store_bytes<kWhole>(p.selection, at, range, chosen);
    });
    return;
  }
  for_quads<Score, kWhole>(p, own, range, [&](int, std::int64_t at, unsigned flags, const Quad<Score>& quad) {
    unsigned chosen = 0;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const int key = Keys<Score>::of_bits(quad.bits(j));
      if (key > segment.low || (key == segment.low && keeps(at + j))) chosen |= flags & 1u << (8 * j);
    }
    store_bytes<kWhole>(p.selection, at, range, chosen);
  });
}

template <typename Score>
__global__ void __launch_bounds__(kSelectThreads, 4) write_kernel(Problem p) {
  SMILE_FAST_SHARED(SearchShared, shared);
  for_segments(p, Stage::chosen, shared.found, [&](std::int64_t number, const Range& range, const Range& part) {
    const Segment segment = p.states[number];
    if (segment.source == Source::list) {
      for_entries(list_of(p, range).entries, share_of(part, range, segment.inside), [&](bool valid, uint2 entry) {
        const int key = static_cast<int>(entry.x);
        const bool chosen = key > segment.low || (key == segment.low && entry.y <= segment.cut);
        if (valid && chosen && range.begin + entry.y < range.end) p.selection[range.begin + entry.y] = 1;
      });
    } else {
      for_stretches(part, [&](std::int64_t own, const Range& stretch) {
        is_whole(p, stretch) ? write_stretch<Score, true>(p, segment, own, stretch, range.begin)
                             : write_stretch<Score, false>(p, segment, own, stretch, range.begin);
      });
    }
  });
}

}  // namespace smile_fast::cuda::selection
