#include "core/masked_bce/channel_sums.cuh"

namespace smile_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 16;               // labels that a thread reads at a time
constexpr std::int64_t kChunk = 32768;  // labels of a block

struct Bins {
  unsigned counts[kLabelValues];
  Count known;
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

// A block counts kChunk labels of one image. Label maps are mostly runs of one value: a warp whose 512 labels are equal
// adds once.
__global__ void __launch_bounds__(kThreads)
    histogram_kernel(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t organs, std::int64_t voxels,
                     unsigned blocks, Count* histograms, Count* known) {
  SMILE_FAST_SHARED(Bins, shared);
  const std::int64_t image = blockIdx.x / blocks, begin = static_cast<std::int64_t>(blockIdx.x % blocks) * kChunk;
  const std::int64_t length = begin + kChunk < voxels ? kChunk : voxels - begin;
  const std::uint8_t* own = labels + image * voxels + begin;
  const bool aligned = reinterpret_cast<std::uintptr_t>(own) % kUnit == 0;
  const int thread = threadIdx.x;
  if (thread < kLabelValues) shared.counts[thread] = 0;
  if (thread == 0) shared.known = 0;
  __syncthreads();
  for (std::int64_t first = 0; first < length; first += kThreads * kUnit) {
    const std::int64_t at = first + thread * kUnit, rest = length - at;
    const uint4 units = rest > 0 ? load_labels(own + at, rest, aligned) : make_uint4(0, 0, 0, 0);
    const bool equal = rest >= kUnit && uniform(units);
    const unsigned label = units.x & 0xffu;
    const unsigned first_label = __shfl_sync(kAllLanes, label, 0);  // all lanes: not behind a && below
    if (__all_sync(kAllLanes, equal && label == first_label)) {
      if (lane_of_thread() == 0) atomicAdd(shared.counts + label, static_cast<unsigned>(kWarp * kUnit));
    } else if (equal) {
      atomicAdd(shared.counts + label, static_cast<unsigned>(kUnit));
    } else {
      count_each(units, rest, shared.counts);
    }
  }
  __syncthreads();
  if (thread < kLabelValues && shared.counts[thread] != 0) {
    const Count count = shared.counts[thread];
    const std::int64_t words = (organs + kWordBits - 1) / kWordBits;
    const std::uint32_t* row = table + (image * kLabelValues + thread) * 2 * words;
    unsigned known_organs = 0;
    for (std::int64_t word = 0; word < words; ++word) {
      const std::int64_t rest = organs - word * kWordBits;
      const unsigned exist = rest >= kWordBits ? ~0u : (1u << rest) - 1u;  // bits past the last organ mean nothing
      known_organs += __popc(__ldg(row + word) & exist);
    }
    atomicAdd(histograms + image * kLabelValues + thread, count);
    atomicAdd(&shared.known, count * known_organs);
  }
  __syncthreads();
  if (thread == 0) atomicAdd(known, shared.known);
}

// A warp per channel.
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const double* partials, std::int64_t parts, const Count* histograms, const std::uint32_t* table,
               std::int64_t words, unsigned channels, unsigned organs, double* sums, std::int64_t* counts) {
  const unsigned channel = blockIdx.x * (kThreads / kWarp) + warp_of_thread();
  if (channel >= channels) return;
  const std::int64_t image = channel / organs;
  const unsigned organ = channel % organs;
  const double* own = partials + channel * parts;
  double sum = 0.0;
  for (std::int64_t part = lane_of_thread(); part < parts; part += kWarp) sum += own[part];
  Count count = 0;
  for (std::int64_t label = lane_of_thread(); label < kLabelValues; label += kWarp) {
    const std::int64_t row = image * kLabelValues + label;
    const bool known = __ldg(table + row * 2 * words + organ / 32) >> (organ % 32) & 1u;
    count += known ? histograms[row] : 0;
  }
  sum = warp_sum(sum);
  count = warp_sum(count);
  if (lane_of_thread() == 0) {
    sums[channel] = sum;
    counts[channel] = static_cast<std::int64_t>(count);
  }
}

}  // namespace

void count_labels(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t batch, std::int64_t organs,
                  std::int64_t voxels, const LabelHistograms& histograms, void* stream) {
  clear(histograms.bins, static_cast<std::size_t>(batch * kLabelValues + 1) * sizeof(Count), stream);
  const std::int64_t blocks = ceil_div(voxels, kChunk);
  launch("histogram of the labels", histogram_kernel, batch * blocks, kThreads, stream, labels, table, organs, voxels,
         static_cast<unsigned>(blocks), histograms.bins, histograms.known);
}

void sum_channels(const double* partials, std::int64_t parts, const LabelHistograms& histograms,
                  const std::uint32_t* table, std::int64_t batch, std::int64_t organs, double* sums,
                  std::int64_t* counts, void* stream) {
  const std::int64_t channels = batch * organs;
  launch("sums of the channels", sum_kernel, ceil_div(channels, kThreads / kWarp), kThreads, stream, partials, parts,
         histograms.bins, table, ceil_div(organs, kWordBits), static_cast<unsigned>(channels),
         static_cast<unsigned>(organs), sums, counts);
}

}  // namespace smile_fast::cuda
