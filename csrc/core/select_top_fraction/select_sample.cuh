// The first launch, a block a segment: short segments are settled; of the others a sample brackets the threshold.
#pragma once

#include "core/select_top_fraction/select_ranks.cuh"

namespace smile_fast::cuda::selection {

constexpr int kSampleThreads = 1024;
constexpr int kOwnKeys = kSmall / kSampleThreads;  // 16: of a short segment all keys, of a longer one its sample
constexpr int kOwnSpots = kOwnKeys / kQuad;
constexpr int kSpots = kSampleThreads * kOwnSpots;  // 4,096
constexpr double kDeviations = 3.5;                 // half the bracket's width; the sample misleads once in 2,000 times

// A number that looks random, for every number (the finaliser of MurmurHash3).
__device__ __forceinline__ unsigned scrambled(unsigned value) {
  value = (value ^ value >> 16) * 0x85ebca6bu;
  value = (value ^ value >> 13) * 0xc2b2ae35u;
  return value ^ value >> 16;
}

// A segment of at most kOwnKeys voxels a thread, of a block or of its first warp.
template <typename Score, int kThreads, typename Reduction>
__device__ __forceinline__ void select_short(const Problem& p, const Range& range, double gamma, Reduction& all) {
  const auto length = static_cast<unsigned>(range.end - range.begin);
  const auto offset_of = [](int k) { return static_cast<unsigned>(k) * kThreads + threadIdx.x; };
  int keys[kOwnKeys];
  unsigned own = 0;
#pragma unroll
  for (int k = 0; k < kOwnKeys; ++k) {
    keys[k] = kNoKey;
    if (offset_of(k) >= length) continue;
    const std::int64_t voxel = range.begin + offset_of(k);
    const int key = Keys<Score>::load(p.scores, voxel);
    if (p.candidates[voxel] != 0) keys[k] = key;
    own += keys[k] != kNoKey;
  }
  const unsigned candidates = all.sum(own), wanted = fraction_count(gamma, candidates);
  int threshold = wanted == 0 ? Keys<Score>::kHighest : Keys<Score>::kNan;  // no score has the highest key
  unsigned cut = ~0u;
  if (wanted != 0 && wanted < candidates) {
    int least = kNoKey, most = kNoKey;
#pragma unroll
    for (int k = 0; k < kOwnKeys; ++k) {
      most = keys[k] > most ? keys[k] : most;
      least = keys[k] != kNoKey && -keys[k] > least ? -keys[k] : least;
    }
    const unsigned ranks[1] = {wanted};
    int low[1] = {-all.max(least)}, high[1] = {all.max(most)};
    find_ranks(keys, ranks, low, high, all);
    threshold = low[0];
    unsigned counts = 0;
#pragma unroll
    for (int k = 0; k < kOwnKeys; ++k)
      counts += (keys[k] > threshold ? 1u : 0u) + (keys[k] == threshold ? 1u << 16 : 0u);
    counts = all.sum(counts);
    const unsigned ties = wanted - (counts & 0xffffu);
    if (ties < counts >> 16)
      cut = find_cut(keys, threshold, ties, 32 - __clz(static_cast<int>(length)), offset_of, all);
  }
#pragma unroll
  for (int k = 0; k < kOwnKeys; ++k) {
    if (offset_of(k) >= length) continue;
    p.selection[range.begin + offset_of(k)] = keys[k] > threshold || (keys[k] == threshold && offset_of(k) <= cut);
  }
}

// The first voxel of a spot of the sample: somewhere in its 4,096th part of a segment, at a multiple of kQuad.
__device__ __forceinline__ std::int64_t spot_of(const Range& range, unsigned number) {
  const auto places = static_cast<std::uint64_t>(range.end - range.begin - 2 * kQuad);
  const std::uint64_t share = (number << 20) | (scrambled(number) & 0xfffffu);  // in units of 2^-32
  return (range.begin + static_cast<std::int64_t>(places * share >> 32) + kQuad - 1) / kQuad * kQuad;
}

// A thread's part of a sample: 4,096 spots of four voxels, since a place costs a 32-byte sector of scores anyway.
// Returns how many of its spots have candidates.
template <typename Score>
__device__ __forceinline__ unsigned draw(const Problem& p, const Range& range, int (&keys)[kOwnKeys]) {
  std::int64_t spots[kOwnSpots];
  unsigned flags[kOwnSpots], found = 0;
#pragma unroll
  for (int s = 0; s < kOwnSpots; ++s) {
    spots[s] = spot_of(range, s * kSampleThreads + threadIdx.x);
    flags[s] = nonzero_bytes(p.aligned ? load_bytes<true>(p.candidates, spots[s], range)
                                       : load_bytes<false>(p.candidates, spots[s], range));
    found += flags[s] != 0;
  }
#pragma unroll
  for (int s = 0; s < kOwnSpots; ++s) {
    const Quad<Score> quad = p.aligned ? load_quad<Score, true>(p.scores, spots[s], flags[s])
                                       : load_quad<Score, false>(p.scores, spots[s], flags[s]);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      keys[s * kQuad + j] = (flags[s] >> (8 * j) & 1u) != 0 ? Keys<Score>::of_bits(quad.bits(j)) : kNoKey;
  }
  return found;
}

__device__ __forceinline__ unsigned count_between(const int (&keys)[kOwnKeys], int low, int high,
                                                  BlockReduction& block) {
  unsigned own = 0;
#pragma unroll
  for (int k = 0; k < kOwnKeys; ++k) own += keys[k] >= low && keys[k] <= high;
  return block.sum(own);
}

// A bracket that holds the threshold of share gamma, very probably: two ranks of the sample.
template <typename Score>
__device__ __forceinline__ void guess(const Problem& p, const Range& range, double gamma, BlockReduction& block,
                                      int& low, int& high) {
  low = Keys<Score>::kNan;
  high = Keys<Score>::kHighest;
  int keys[kOwnKeys], least = kNoKey, most = kNoKey;
  const unsigned own_spots = draw<Score>(p, range, keys);
  unsigned own = 0;
#pragma unroll
  for (int k = 0; k < kOwnKeys; ++k) {
    own += keys[k] != kNoKey;
    most = keys[k] > most ? keys[k] : most;
    least = keys[k] != kNoKey && -keys[k] > least ? -keys[k] : least;
  }
  const unsigned size = block.sum(own), spots = block.sum(own_spots);
  if (size == 0) return;
  // Neighbours resemble each other: a spot counts as one.
  const double independent = spots,
               error = kDeviations * sqrt(gamma * (1 - gamma) / independent) + kDeviations / independent;
  const double upper = floor((gamma - error) * size), lower = floor((gamma + error) * size);
  const int lowest = -block.max(least), highest = block.max(most);
  const unsigned ranks[2] = {lower < size ? static_cast<unsigned>(lower) + 1 : size,
                             upper >= 0 ? static_cast<unsigned>(upper) + 1 : 1};
  int lows[2] = {lowest, lowest}, highs[2] = {highest, highest};
  find_ranks(keys, ranks, lows, highs, block);
  if (lower < size) low = lows[0];
  if (upper >= 0) high = lows[1];
  const unsigned inside = count_between(keys, low, high, block);
  if (inside <= (4 * error + 0.05) * size) return;
  // Ties of one value with the threshold fill most of the bracket: their key identifies them, without a list.
  const auto middle = static_cast<unsigned>(gamma * size);
  const unsigned likeliest[1] = {(middle < size ? middle : size - 1) + 1};
  int single[1] = {lowest}, end[1] = {highest};
  find_ranks(keys, likeliest, single, end, block);
  if (2 * count_between(keys, single[0], single[0], block) >= inside) low = high = single[0];
}

template <typename Score>
__global__ void __launch_bounds__(kSampleThreads) sample_kernel(Problem p) {
  SMILE_FAST_SHARED(BlockSlots, slots);
  BlockReduction block(slots);
  const std::int64_t number = blockIdx.x;
  const Range range = range_of(p.offsets, number, p.length);
  const double gamma = p.gamma[number];
  Segment first = {};
  if (range.end - range.begin > kSmall) {
    unsigned* const bins = bins_of(p, number, range);
    for (int bin = threadIdx.x; bin < kBins; bin += kSampleThreads) bins[bin] = 0;
    first.stage = gamma >= 1 ? Stage::all : gamma > 0 ? Stage::bracket : Stage::none;  // NaN is 0, too
    if (first.stage == Stage::bracket) guess<Score>(p, range, gamma, block, first.low, first.high);
  } else if (range.end - range.begin > kOwnKeys * kWarp) {
    select_short<Score, kSampleThreads>(p, range, gamma, block);
  } else if (range.begin < range.end && warp_of_thread() == 0) {
    WarpReduction warp;
    select_short<Score, kWarp>(p, range, gamma, warp);
  }
  if (threadIdx.x == 0) {
    p.states[number] = first;
    p.counters[number] = {};
  }
}

}  // namespace smile_fast::cuda::selection
