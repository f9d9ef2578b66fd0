#include "core/masked_bce/label_counts.cuh"

namespace smile_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnit = 16;  // labels that a thread reads at a time
constexpr std::int64_t kRound = kThreads * kUnit;
constexpr std::int64_t kManyParts = 256;  // of a batch: two a multiprocessor, and few to be added up
constexpr std::int64_t kSmallestChunk = 2 * kRound;
constexpr std::int64_t kLargestChunk = 1ll << 30;  // a part's counts fit in 32 bits

struct Shared {
  unsigned labels[kLabelValues];
  unsigned organs[kWarps][kWordBits];
};

// 16 labels, or those before `end`, as words; `length` says how many there are.
__device__ __forceinline__ uint4 load_labels(const std::uint8_t* labels, std::int64_t length, bool aligned) {
  if (aligned && length >= kUnit) return __ldg(reinterpret_cast<const uint4*>(labels));
  unsigned words[4] = {};
#pragma unroll
  for (int i = 0; i < kUnit; ++i)
    if (i < length) words[i / 4] |= static_cast<unsigned>(__ldg(labels + i)) << (8 * (i % 4));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ bool uniform(uint4 words) {
  const unsigned repeated = (words.x & 0xffu) * 0x01010101u;
  return ((words.x ^ repeated) | (words.y ^ repeated) | (words.z ^ repeated) | (words.w ^ repeated)) == 0;
}

__device__ __forceinline__ void count_each(uint4 units, std::int64_t length, unsigned* counts) {
  const unsigned words[4] = {units.x, units.y, units.z, units.w};
#pragma unroll
  for (int i = 0; i < kUnit; ++i)
    if (i < length) atomicAdd(counts + (words[i / 4] >> (8 * (i % 4)) & 0xffu), 1u);
}

// The labels of one part. Label maps are mostly runs of one value: a warp whose 512 labels are equal adds once.
__device__ __forceinline__ void count_part(const std::uint8_t* labels, std::int64_t length, unsigned* counts) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(labels) % kUnit == 0;
  for (std::int64_t first = 0; first < length; first += kRound) {
    const std::int64_t at = first + threadIdx.x * kUnit, rest = length - at;
    const uint4 units = rest > 0 ? load_labels(labels + at, rest, aligned) : make_uint4(0, 0, 0, 0);
    const bool equal = rest >= kUnit && uniform(units);
    const unsigned label = units.x & 0xffu;
    const unsigned first_label = __shfl_sync(kAllLanes, label, 0);  // all lanes: not behind a && below
    if (__all_sync(kAllLanes, equal && label == first_label)) {
      if (lane_of_thread() == 0) atomicAdd(counts + label, static_cast<unsigned>(kWarp * kUnit));
    } else if (equal) {
      atomicAdd(counts + label, static_cast<unsigned>(kUnit));
    } else {
      count_each(units, rest, counts);
    }
  }
}

// A thread holds one label value: how often it occurs, and the 32 organs of a word that it is known for. Lane i gets
// the known voxels of organ i of the word, of the warp's labels.
__device__ __forceinline__ unsigned known_of_lane(unsigned count, unsigned word, int organs) {
  unsigned own = 0;
  if (__all_sync(kAllLanes, count == 0)) return own;  // most warps: few labels occur
  for (int organ = 0; organ < organs; ++organ) {
    const unsigned known = warp_sum(word >> organ & 1u ? count : 0u);
    if (lane_of_thread() == organ) own = known;
  }
  return own;
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t organs, std::int64_t voxels,
                 LabelCounts counts, unsigned* tickets, std::int64_t ticket_count) {
  static_assert(kThreads == kLabelValues);
  SMILE_FAST_SHARED(Shared, shared);
  const std::int64_t parts = counts.parts, image = blockIdx.x / parts, begin = blockIdx.x % parts * counts.chunk;
  const std::int64_t length = begin + counts.chunk < voxels ? counts.chunk : voxels - begin;
  const int thread = threadIdx.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + thread; i < ticket_count;
       i += gridDim.x * static_cast<std::int64_t>(kThreads))
    tickets[i] = 0;
  shared.labels[thread] = 0;
  __syncthreads();
  count_part(labels + image * voxels + begin, length, shared.labels);
  __syncthreads();
  const std::int64_t words = (organs + kWordBits - 1) / kWordBits;
  const std::uint32_t* row = table + (image * kLabelValues + thread) * 2 * words;
  const unsigned count = shared.labels[thread];
  Count pairs = 0;
  for (std::int64_t word = 0; word < words; ++word) {
    const std::int64_t rest = organs - word * kWordBits;
    const int of_word = static_cast<int>(rest < kWordBits ? rest : kWordBits);
    shared.organs[warp_of_thread()][lane_of_thread()] = known_of_lane(count, __ldg(row + word), of_word);
    __syncthreads();
    if (thread < of_word) {
      unsigned known = 0;
      for (int warp = 0; warp < kWarps; ++warp) known += shared.organs[warp][thread];
      counts.organs[blockIdx.x * organs + word * kWordBits + thread] = known;
      pairs += known;
    }
    __syncthreads();
  }
  if (thread >= kWarp) return;  // the others' share is 0
  pairs = warp_sum(pairs);
  if (thread == 0) counts.pairs[blockIdx.x] = pairs;
}

}  // namespace

LabelCounts::LabelCounts(WorkspaceArena& arena, std::int64_t batch, std::int64_t organ_count, std::int64_t voxels) {
  const std::int64_t wanted = ceil_div(ceil_div(batch * voxels, kManyParts), kRound) * kRound;
  chunk = wanted < kSmallestChunk ? kSmallestChunk : wanted < kLargestChunk ? wanted : kLargestChunk;
  parts = voxels > 0 ? ceil_div(voxels, chunk) : 1;
  organs = arena.take<unsigned>(batch * parts * organ_count);
  pairs = arena.take<Count>(batch * parts);
}

void count_labels(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t batch, std::int64_t organs,
                  std::int64_t voxels, const LabelCounts& counts, unsigned* tickets, std::int64_t ticket_count,
                  void* stream) {
  launch("known voxels", count_kernel, batch * counts.parts, kThreads, stream, labels, table, organs, voxels, counts,
         tickets, ticket_count);
}

}  // namespace smile_fast::cuda
