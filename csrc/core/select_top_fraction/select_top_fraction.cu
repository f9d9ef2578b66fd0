// The threshold of a segment is the key of its k-th best candidate. Keys are 32-bit integers in the order of the
// scores; three histograms of 11, 11 and 10 bits find the threshold.
//
//   clear       (a memset) the counters
//   compact     reads the scores of candidates once: lists of their keys and places, histogram of the first digit
//   refine      the second digit, of those candidates that share the threshold's first one; then the third: two passes
//   count ties  candidates of each item that equal the threshold, where only some of them are selected
//   select      marks what is above the threshold, and the first of what equals it
//
// Every pass is a launch of its own, so no block ever waits for another one. The block that finishes a segment's
// histogram last looks up the threshold's digit in it. Counts are integers, so the order in which blocks add to them
// does not matter.
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
    Pack<Score> pack = {};
    if (aligned && (bits >> first & kAccess) != 0) {
      const uint4 words = __ldcs(reinterpret_cast<const uint4*>(scores + first));
      pack = {{words.x, words.y, words.z, words.w, 0, 0, 0, 0}};
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float score = pack.get(i);
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

// Counts one digit of an item's candidates that share the digits found so far.
template <int kDigit>
__global__ void __launch_bounds__(kSelectThreads) refine_kernel(Problem p) {
  SMILE_FAST_SHARED(Shared, shared);
  const Item item = item_of(blockIdx.x, p.offsets, p.segments, p.length);
  if (!in_segment(p, item)) return;
  const Threshold* threshold = p.thresholds + item.segment;
  if (threshold->none != 0) return;
  const unsigned key = threshold->key, known = ~0u << shift_of(kDigit - 1);
  clear_bins(shared);
  const Strip strip = strip_of(item, warp_of_thread());
  const unsigned size = p.sizes[blockIdx.x * static_cast<std::int64_t>(kSelectWarps) + warp_of_thread()];
  RunningBin running{shared.bins};
  for (unsigned i = lane_of_thread(); i < size; i += kWarp) {
    const unsigned candidate = __ldcs(p.keys + strip.begin + i);
    if ((candidate & known) == key) running.add(candidate >> shift_of(kDigit) & mask_of(kDigit));
  }
  running.flush();
  finish_histogram(p, item, kDigit, shared);
}

// Whether only the first of the candidates that equal the threshold are selected.
__device__ __forceinline__ bool splits_ties(const Threshold& threshold) {
  return threshold.none == 0 && threshold.wanted < threshold.remaining;
}

__global__ void __launch_bounds__(kSelectThreads) count_ties_kernel(Problem p) {
  const std::int64_t number = blockIdx.x;
  const Item item = item_of(number, p.offsets, p.segments, p.length);
  if (!in_segment(p, item)) return;
  const Threshold threshold = p.thresholds[item.segment];
  if (!splits_ties(threshold)) return;
  const int warp = warp_of_thread();
  const Strip strip = strip_of(item, warp);
  const unsigned size = p.sizes[number * kSelectWarps + warp];
  unsigned ties = 0;
  for (unsigned i = lane_of_thread(); i < size; i += kWarp) ties += p.keys[strip.begin + i] == threshold.key;
  ties = warp_sum(ties);
  if (lane_of_thread() == 0 && ties != 0) {
    p.ties[number * kSelectWarps + warp] = ties;
    atomicAdd(p.sums_of_ties + number / kSpan, static_cast<Count>(ties));
  }
}

// A thread's share of the ties of all items before one.
__device__ __forceinline__ Count share_of_ties(const Problem& p, std::int64_t number) {
  const std::int64_t spans = number / kSpan, thread = threadIdx.x;
  Count sum = 0;
  for (std::int64_t span = thread; span < spans; span += kSelectThreads) sum += p.sums_of_ties[span];
  if (thread < number % kSpan * kSelectWarps) sum += p.ties[spans * kSpan * kSelectWarps + thread];
  return sum;
}

// Ties of the segment's voxels before a warp's strip; all threads of the block. The items between the segment's first
// one and this one are all the segment's.
__device__ __forceinline__ Count ties_before(const Problem& p, const Item& item, std::int64_t number, Shared& shared) {
  const std::int64_t begin = clamped(__ldg(p.offsets + item.segment), 0, p.length);
  const std::int64_t first = item_at(begin, item.segment, p.length);
  // Modulo 2^64: where offsets decrease, `first` may be the larger one.
  const Count share = warp_sum(share_of_ties(p, number) - share_of_ties(p, first));
  if (lane_of_thread() == 0) shared.ties[warp_of_thread()] = share;
  __syncthreads();
  Count earlier = 0;
  for (int warp = 0; warp < kSelectWarps; ++warp) earlier += shared.ties[warp];
  for (int warp = 0; warp < warp_of_thread(); ++warp) earlier += p.ties[number * kSelectWarps + warp];
  return earlier;
}

__global__ void __launch_bounds__(kSelectThreads) select_kernel(Problem p) {
  SMILE_FAST_SHARED(Shared, shared);
  const std::int64_t number = blockIdx.x;
  const Item item = item_of(number, p.offsets, p.segments, p.length);
  if (!in_segment(p, item)) return;
  const Threshold threshold = p.thresholds[item.segment];
  if (threshold.none != 0) return;
  const int warp = warp_of_thread(), lane = lane_of_thread();
  const Strip strip = strip_of(item, warp);
  const unsigned size = p.sizes[number * kSelectWarps + warp];
  const bool split = splits_ties(threshold);
  const Count allowed = split ? threshold.wanted : ~Count{0};
  Count earlier = split ? ties_before(p, item, number, shared) : 0;
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
  return Workspace(nullptr, a.length, a.segments).arena.bytes();
}

void select_top_fraction_cuda(const SelectTopFractionArguments& a, void* workspace, void* stream) {
  if (a.length == 0) return;
  const Workspace w(workspace, a.length, a.segments);
  const Problem p{a.scores, a.candidates, a.length,     a.gamma, a.offsets,      a.segments,   a.selection, w.keys,
                  w.places, w.sizes,      w.histograms, w.ties,  w.sums_of_ties, w.thresholds, w.finished};
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
  launch("select_top_fraction: refine 1", refine_kernel<1>, w.items, kSelectThreads, stream, p);
  launch("select_top_fraction: refine 2", refine_kernel<2>, w.items, kSelectThreads, stream, p);
  launch("select_top_fraction: count ties", count_ties_kernel, w.items, kSelectThreads, stream, p);
  launch("select_top_fraction: select", select_kernel, w.items, kSelectThreads, stream, p);
}

}  // namespace smile_fast
