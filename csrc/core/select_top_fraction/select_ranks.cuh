// The keys of given ranks among keys that threads hold in registers, by bisection: no histogram, so equal
// keys cost no more than others. A step is two comparisons a key and one barrier.
#pragma once

#include "core/select_top_fraction/select_voxels.cuh"

namespace smile_fast::cuda::selection {

struct BlockSlots {
  unsigned values[2][kWarp];
};

// Sums and maxima over all threads of a block, in each of them. Two sets of slots, so one barrier each is enough.
class BlockReduction {
 public:
  explicit __device__ __forceinline__ BlockReduction(BlockSlots& slots) : slots_(slots) {}

  __device__ __forceinline__ unsigned sum(unsigned value) {
    return __reduce_add_sync(kAllLanes, exchanged(__reduce_add_sync(kAllLanes, value), 0));
  }
  __device__ __forceinline__ int max(int value) {
    const auto own = static_cast<unsigned>(__reduce_max_sync(kAllLanes, value));
    return __reduce_max_sync(kAllLanes, static_cast<int>(exchanged(own, static_cast<unsigned>(kNoKey))));
  }

 private:
  // A value of each warp, in the lane of its number; `neutral` in the other lanes.
  __device__ __forceinline__ unsigned exchanged(unsigned value, unsigned neutral) {
    unsigned* const values = slots_.values[phase_ ^= 1u];
    if (lane_of_thread() == 0) values[warp_of_thread()] = value;
    __syncthreads();
    return lane_of_thread() < static_cast<int>(blockDim.x) / kWarp ? values[lane_of_thread()] : neutral;
  }

  BlockSlots& slots_;
  unsigned phase_ = 0;
};

// The same over a warp that works alone.
struct WarpReduction {
  __device__ __forceinline__ unsigned sum(unsigned value) { return __reduce_add_sync(kAllLanes, value); }
  __device__ __forceinline__ int max(int value) { return __reduce_max_sync(kAllLanes, value); }
};

// Sets low[i] to the key of rank ranks[i] (1 is the highest), which lies in low[i]..high[i]; at most 65,535 keys.
template <int kKeys, int kRanks, typename Reduction>
__device__ __forceinline__ void find_ranks(const int (&keys)[kKeys], const unsigned (&ranks)[kRanks],
                                           int (&low)[kRanks], int (&high)[kRanks], Reduction& all) {
  static_assert(kRanks <= 2, "two counts share a word");
  while (true) {
    bool open = false;
    int middle[kRanks];
    for (int i = 0; i < kRanks; ++i) {
      const unsigned width = static_cast<unsigned>(high[i]) - static_cast<unsigned>(low[i]);
      middle[i] = static_cast<int>(static_cast<unsigned>(low[i]) + width / 2 + width % 2);
      open |= width != 0;
    }
    if (!open) return;
    unsigned reaching = 0;
#pragma unroll
    for (int k = 0; k < kKeys; ++k)
      for (int i = 0; i < kRanks; ++i) reaching += keys[k] >= middle[i] ? 1u << (16 * i) : 0u;
    reaching = all.sum(reaching);
    for (int i = 0; i < kRanks; ++i) {
      if ((reaching >> (16 * i) & 0xffffu) >= ranks[i])
        low[i] = middle[i];
      else
        high[i] = middle[i] - (low[i] < high[i]);
    }
  }
}

// The offset up to which `wanted` of the keys that equal `key` are found, in the order of their offsets, all below
// 2^bits. offset_of(k) is that of the thread's key k.
template <int kKeys, typename OffsetOf, typename Reduction>
__device__ __forceinline__ unsigned find_cut(const int (&keys)[kKeys], int key, unsigned wanted, int bits,
                                             const OffsetOf& offset_of, Reduction& all) {
  unsigned cut = 0;  // the greatest number below which fewer are found
  for (int bit = bits - 1; bit >= 0; --bit) {
    const unsigned tried = cut | 1u << bit;
    unsigned below = 0;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) below += keys[k] == key && offset_of(k) < tried;
    if (all.sum(below) < wanted) cut = tried;
  }
  return cut;
}

}  // namespace smile_fast::cuda::selection
