// The threshold of a segment is the key of its k-th best candidate. Keys are 32-bit integers in the order of the
// scores; three histograms of 11, 11 and 10 bits find the threshold.
//
//   clear     (a memset) the counters
//   compact   reads the scores of candidates once: lists of their keys and places, histogram of the first digit
//   refine    the second digit, of those candidates that share the threshold's first one; then the third
//   select    marks what is above the threshold, and the first of what equals it
//
// The block that finishes a segment's histogram last looks up the threshold's digit in it. Counts are integers, so the
// order in which blocks add to them does not matter.
//
// Blocks of the last two kernels take numbers in the order in which they start, and wait only for lower numbers:
// whoever is waited for is running, and ends without waiting for a higher one.
#include "core/common/cuda_formats.cuh"
#include "core/select_top_fraction/select_histograms.cuh"
#include "core/select_top_fraction/select_top_fraction_cuda.h"

namespace smile_fast {
namespace {

using namespace cuda;
using namespace cuda::selection;

__device__ __forceinline__ bool in_segment(const Problem& p, const Item& item) {
  return item.begin < item.end && item.segment >= 0 && item.segment < p.segments;
}

// The voxels of a strip that are inside of the item; its list starts at `begin`, and places count from there.
struct Strip {
  std::int64_t begin, end;
};
__device__ __forceinline__ Strip strip_of(const Item& item, int warp) {
  const std::int64_t first = item.begin / kItem * kItem + warp * kStrip;
  return {clamped(first, item.begin, item.end), clamped(first + kStrip, item.begin, item.end)};
}

// Which of 16 voxels from `at` on are candidates inside of [begin, end): one bit each.
__device__ __forceinline__ unsigned candidate_bits(const std::uint8_t* candidates, std::int64_t at, std::int64_t begin,
                                                   std::int64_t end, bool aligned) {
  unsigned bits = 0;
  if (aligned && at >= begin && at + kPerThread <= end) {
    const uint4 bytes = __ldcs(reinterpret_cast<const uint4*>(candidates + at));
    const unsigned words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) bits |= (words[i / 4] >> (8 * (i % 4)) & 0xffu) != 0 ? 1u << i : 0;
  } else {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
      if (at + i >= begin && at + i < end && candidates[at + i] != 0) bits |= 1u << i;
  }
  return bits;
}

// The keys of those of 16 voxels that are candidates. Accesses of 16 bytes without any are left out.
template <typename Score>
__device__ __forceinline__ void load_keys(const Score* scores, unsigned bits, bool aligned,
                                          unsigned (&keys)[kPerThread]) {
  constexpr int kWidth = 16 / sizeof(Score);
  constexpr unsigned kAccess = (1u << kWidth) - 1;
#pragma unroll
  for (int first = 0; first < kPerThread; first += kWidth) {
    Held<Score> held = {};
    if (aligned && (bits >> first & kAccess) != 0) {
      const uint4 words = __ldcs(reinterpret_cast<const uint4*>(scores + first));
      held = {{words.x, words.y, words.z, words.w, 0, 0, 0, 0}};
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float score = held.get(i);
      if (!aligned && (bits >> (first + i) & 1u)) score = load_number(scores + first + i);
      keys[first + i] = key_of(score);
    }
  }
}

__device__ __forceinline__ void clear_selection(std::uint8_t* selection, std::int64_t at, const Strip& strip,
                                                bool aligned) {
  if (aligned && at >= strip.begin && at + kPerThread <= strip.end) {
    __stcs(reinterpret_cast<uint4*>(selection + at), make_uint4(0, 0, 0, 0));
  } else {
    for (std::int64_t i = at < strip.begin ? strip.begin : at; i < at + kPerThread && i < strip.end; ++i)
      selection[i] = 0;
  }
}

// A warp's strip: writes its list and clears its selection; returns the length of the list.
template <typename Score>
__device__ __forceinline__ unsigned compact_strip(const Problem& p, const Strip& strip, bool wanted, bool aligned,
                                                  Shared& shared) {
  const Score* scores = static_cast<const Score*>(p.scores);
  const std::int64_t first = strip.begin / kPerThread * kPerThread;
  RunningBin running{shared.bins};
  unsigned size = 0;
  for (std::int64_t round = first; round < strip.end; round += kRound) {
    const std::int64_t at = round + lane_of_thread() * kPerThread;
    const unsigned bits = wanted ? candidate_bits(p.candidates, at, strip.begin, strip.end, aligned) : 0;
    clear_selection(p.selection, at, strip, aligned);
    unsigned keys[kPerThread];
    // Near the item's ends, 16 neighbours may leave the array: then one by one.
    load_keys(scores + at, bits, aligned && at + kPerThread <= p.length, keys);
    unsigned sum = __popc(bits);
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
      const unsigned other = __shfl_up_sync(kAllLanes, sum, lanes);
      if (lane_of_thread() >= lanes) sum += other;
    }
    std::int64_t next = strip.begin + size + sum - __popc(bits);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (bits >> i & 1u) {
        p.keys[next] = keys[i];
        p.places[next] = static_cast<unsigned short>(at + i - strip.begin);
        ++next;
        running.add(keys[i] >> shift_of(0));
      }
    }
    size += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  running.flush();
  return size;
}

template <typename Score>
__global__ void __launch_bounds__(kSelectThreads) compact_kernel(Problem p) {
  SMILE_FAST_SHARED(Shared, shared);
  const Item item = item_of(blockIdx.x, p.offsets, p.segments, p.length);
  if (item.begin >= item.end) return;
  clear_bins(shared);
  const bool inside = in_segment(p, item);
  const bool aligned = (reinterpret_cast<std::uintptr_t>(p.scores) | reinterpret_cast<std::uintptr_t>(p.candidates) |
                        reinterpret_cast<std::uintptr_t>(p.selection)) %
                           16 ==
                       0;
  const unsigned size = compact_strip<Score>(p, strip_of(item, warp_of_thread()), inside, aligned, shared);
  if (lane_of_thread() == 0) p.sizes[blockIdx.x * static_cast<std::int64_t>(kSelectWarps) + warp_of_thread()] = size;
  if (inside) finish_histogram(p, item, 0, shared);
}

// Counts one digit of an item's candidates that share the digits found so far. Another block of the same launch may
// have found the second digit: nothing of it may come from a cache that this block's multiprocessor has for itself.
__device__ __forceinline__ void refine_item(const Problem& p, std::int64_t number, int digit, Shared& shared) {
  const Item item = item_of(number, p.offsets, p.segments, p.length);
  if (!in_segment(p, item)) return;
  const Threshold* threshold = p.thresholds + item.segment;
  if (__ldcg(&threshold->none) != 0) return;
  const unsigned key = __ldcg(&threshold->key), known = ~0u << shift_of(digit - 1);
  clear_bins(shared);
  const Strip strip = strip_of(item, warp_of_thread());
  const unsigned size = p.sizes[number * kSelectWarps + warp_of_thread()];
  RunningBin running{shared.bins};
  for (unsigned i = lane_of_thread(); i < size; i += kWarp) {
    const unsigned candidate = __ldcs(p.keys + strip.begin + i);
    if ((candidate & known) == key) running.add(candidate >> shift_of(digit) & mask_of(digit));
  }
  running.flush();
  finish_histogram(p, item, digit, shared);
}

// Two blocks an item: the first half counts second digits; the others wait until all of these are done, whatever the
// offsets, and count third digits.
__global__ void __launch_bounds__(kSelectThreads) refine_kernel(Problem p) {
  SMILE_FAST_SHARED(Shared, shared);
  const std::int64_t number = take_number(p.tickets, shared), items = gridDim.x / 2;
  if (number < items) {
    refine_item(p, number, 1, shared);
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(p.counted, 1u);
    }
  } else {
    if (threadIdx.x == 0) {
      while (atomicAdd(p.counted, 0u) < items) __nanosleep(100);
      __threadfence();
    }
    __syncthreads();
    refine_item(p, number - items, 2, shared);
  }
}

// What an item publishes of the voxels that equal the threshold: its own number of them at once, then the number from
// the segment's begin to its end.
constexpr Count kOwn = 1, kSum = 2;  // in the low two bits

// Voxels of earlier items of the segment that equal the threshold. Blocks take numbers in the order in which they
// start and publish before they wait, so whoever is waited for is running: decoupled look-back.
__device__ Count ties_before(const Problem& p, const Item& item, std::int64_t number, Count own) {
  atomicExch(p.ties + number, own << 2 | kOwn);
  Count sum = 0;
  const std::int64_t begin = clamped(__ldg(p.offsets + item.segment), 0, p.length);
  for (std::int64_t other = number - 1, voxel = item.begin; other >= 0 && voxel > begin; --other) {
    const Item earlier = item_of(other, p.offsets, p.segments, p.length);
    if (earlier.begin >= earlier.end) continue;
    if (earlier.segment != item.segment) break;  // only with offsets that decrease: nobody would publish
    Count published = atomicAdd(p.ties + other, Count{0});
    while (published == 0) {
      __nanosleep(100);
      published = atomicAdd(p.ties + other, Count{0});
    }
    sum += published >> 2;
    if ((published & 3) == kSum) break;
    voxel = earlier.begin;
  }
  atomicExch(p.ties + number, (sum + own) << 2 | kSum);
  return sum;
}

__global__ void __launch_bounds__(kSelectThreads) select_kernel(Problem p) {
  SMILE_FAST_SHARED(Shared, shared);
  const std::int64_t number = take_number(p.tickets + 1, shared);
  const Item item = item_of(number, p.offsets, p.segments, p.length);
  if (!in_segment(p, item)) return;
  const Threshold threshold = p.thresholds[item.segment];
  if (threshold.none != 0) return;
  const int warp = warp_of_thread(), lane = lane_of_thread();
  const Strip strip = strip_of(item, warp);
  const unsigned size = p.sizes[number * kSelectWarps + warp];
  Count earlier = 0, allowed = ~Count{0};
  if (threshold.wanted < threshold.remaining) {  // only the first of the equal ones: how many come before mine?
    Count own = 0;
    for (unsigned i = lane; i < size; i += kWarp) own += p.keys[strip.begin + i] == threshold.key;
    own = warp_sum(own);
    if (lane == 0) shared.ties[warp] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
      Count all = 0;
      for (int other = 0; other < kSelectWarps; ++other) all += shared.ties[other];
      shared.earlier = ties_before(p, item, number, all);
    }
    __syncthreads();
    earlier = shared.earlier;
    for (int other = 0; other < warp; ++other) earlier += shared.ties[other];
    allowed = threshold.wanted;
  }
  for (unsigned first = 0; first < size; first += kWarp) {
    const unsigned i = first + lane;
    const unsigned key = i < size ? p.keys[strip.begin + i] : 0;
    const bool tied = i < size && key == threshold.key;
    const unsigned equal = __ballot_sync(kAllLanes, tied);
    const Count rank = earlier + __popc(equal & ((1u << lane) - 1u));
    if ((tied && rank < allowed) || (i < size && key > threshold.key))
      p.selection[strip.begin + p.places[strip.begin + i]] = 1;
    earlier += __popc(equal);
  }
}

template <typename Score>
void queue_compact(const Problem& p, std::int64_t items, void* stream) {
  launch("select_top_fraction: compact", compact_kernel<Score>, items, kSelectThreads, stream, p);
}

}  // namespace

std::size_t select_top_fraction_cuda_workspace(const SelectTopFractionArguments& a) {
  return Workspace(nullptr, a.length, a.segments).pieces.bytes();
}

void select_top_fraction_cuda(const SelectTopFractionArguments& a, void* workspace, void* stream) {
  if (a.length == 0) return;
  const Workspace w(workspace, a.length, a.segments);
  const Problem p{a.scores, a.candidates, a.length,     a.gamma, a.offsets,    a.segments, a.selection, w.keys,
                  w.places, w.sizes,      w.histograms, w.ties,  w.thresholds, w.finished, w.tickets,   w.counted};
  clear(w.cleared, w.cleared_bytes, stream);
  switch (a.dtype) {
    case DType::float32:
      queue_compact<float>(p, w.items, stream);
      break;
    case DType::bfloat16:
      queue_compact<BFloat16>(p, w.items, stream);
      break;
    case DType::float16:
      queue_compact<Float16>(p, w.items, stream);
      break;
  }
  launch("select_top_fraction: refine", refine_kernel, 2 * w.items, kSelectThreads, stream, p);
  launch("select_top_fraction: select", select_kernel, w.items, kSelectThreads, stream, p);
}

}  // namespace smile_fast
