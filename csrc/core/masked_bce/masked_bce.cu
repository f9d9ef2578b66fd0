// A block owns a tile of voxels of one image and goes through all organs: the labels are decoded once, into registers,
// as words of 32 organs' bits. A warp skips an organ that none of its voxels knows; the next organ's logits are on
// their way while one is computed. The last of kGroup blocks adds up what they found, the last group of all the groups'
// sums: no launch follows.
#include "core/common/cuda_formats.cuh"
#include "core/common/cuda_kernel.cuh"
#include "core/masked_bce/bce.cuh"
#include "core/masked_bce/label_counts.cuh"
#include "core/masked_bce/masked_bce_cuda.h"

namespace smile_fast {
namespace {

using namespace cuda;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kGroup = kWarp;  // blocks of one image whose sums are added up together: a lane for each

struct Problem {
  const void* logits;
  const std::uint8_t* labels;
  const std::uint32_t* table;
  void* gradient;
  double* partials;    // [batch * organs, blocks]
  double* group_sums;  // [batch * organs, groups]
  unsigned* tickets;   // [batch * groups + 1], 0 at the start: blocks of a group, and groups, that are done
  double* sums;
  std::int64_t* counts;
  float* loss;
  LabelCounts known;
  std::int64_t batch;
  std::int64_t organs;
  std::int64_t words;
  std::int64_t voxels;
  unsigned blocks;     // of one image; 32 bits divide fast
  unsigned groups;     // of one image
  std::int64_t tiles;  // of one block
  bool mean;           // the loss is divided by the known pairs
  bool divides;        // and so is the gradient
};

struct Shared {
  uint2 rows[kLabelValues];  // known and positive bits of the 32 organs at hand
  double losses[kWarps][kWordBits];
  Count pairs[kWarps];
  double sums[kWarps];
  bool last;
};

// Where the elements are that a thread holds: kWidth neighbours in an access, accesses kThreads * kWidth apart.
template <typename Logit, int kWidth>
struct Layout {
  using Elements = Pack<Logit>;
  static constexpr int kTile = kThreads * Elements::kCount;
  static constexpr int kAccesses = Elements::kCount / kWidth;

  static __device__ __forceinline__ std::int64_t offset(int access) {
    return (static_cast<std::int64_t>(access) * kThreads + threadIdx.x) * kWidth;
  }

  // channel: the tile's first element; length: elements from there to the channel's end, a multiple of kWidth.
  static __device__ __forceinline__ void load(const Logit* channel, std::int64_t length, Elements& pack) {
#pragma unroll
    for (int access = 0; access < kAccesses; ++access) {
      const std::int64_t at = offset(access);
      if constexpr (kWidth > 1) {
        uint4 words = make_uint4(0, 0, 0, 0);
        if (at < length) words = __ldcs(reinterpret_cast<const uint4*>(channel + at));
        pack.words[4 * access] = words.x;
        pack.words[4 * access + 1] = words.y;
        pack.words[4 * access + 2] = words.z;
        pack.words[4 * access + 3] = words.w;
      } else {
        using Bits = typename Format<Logit>::Bits;
        pack.set_bits(access, at < length ? __ldcs(reinterpret_cast<const Bits*>(channel + at)) : 0);
      }
    }
  }

  static __device__ __forceinline__ void store(Logit* channel, std::int64_t length, const Elements& pack) {
#pragma unroll
    for (int access = 0; access < kAccesses; ++access) {
      const std::int64_t at = offset(access);
      if (at >= length) continue;
      if constexpr (kWidth > 1) {
        __stcs(reinterpret_cast<uint4*>(channel + at),
               make_uint4(pack.words[4 * access], pack.words[4 * access + 1], pack.words[4 * access + 2],
                          pack.words[4 * access + 3]));
      } else {
        using Bits = typename Format<Logit>::Bits;
        const unsigned word = pack.words[access / Elements::kPerWord];
        __stcs(reinterpret_cast<Bits*>(channel + at),
               static_cast<Bits>(Elements::kPerWord == 1 || access % 2 == 0 ? word : word >> 16));
      }
    }
  }
};

// The supervision of a thread's voxels, and what holds for all voxels of its warp.
template <int kCount>
struct Decoded {
  unsigned known[kCount];
  unsigned positive[kCount];
  unsigned known_anywhere;
  unsigned known_everywhere;
  unsigned positive_anywhere;
};

// The kWidth labels at `address` in the low bytes of two words.
template <int kWidth>
__device__ __forceinline__ uint2 load_labels(const std::uint8_t* address) {
  if constexpr (kWidth == 8) return __ldg(reinterpret_cast<const uint2*>(address));
  if constexpr (kWidth == 4) return make_uint2(__ldg(reinterpret_cast<const unsigned*>(address)), 0);
  return make_uint2(__ldg(address), 0);
}

template <typename Logit, int kWidth>
__device__ __forceinline__ void decode(const std::uint8_t* labels, std::int64_t length, const uint2* rows,
                                       Decoded<Pack<Logit>::kCount>& decoded) {
  using Places = Layout<Logit, kWidth>;
  unsigned any = 0, all = ~0u, positive = 0;
#pragma unroll
  for (int access = 0; access < Places::kAccesses; ++access) {
    const std::int64_t at = Places::offset(access);
    const bool inside = at < length;
    const uint2 bytes = inside ? load_labels<kWidth>(labels + at) : make_uint2(0, 0);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const unsigned label = (i < 4 ? bytes.x : bytes.y) >> (8 * (i % 4)) & 0xffu;
      const uint2 row = inside ? rows[label] : make_uint2(0, 0);
      decoded.known[access * kWidth + i] = row.x;
      decoded.positive[access * kWidth + i] = row.y;
      any |= row.x;
      all &= row.x;
      positive |= row.y;
    }
  }
  decoded.known_anywhere = __reduce_or_sync(kAllLanes, any);
  decoded.known_everywhere = __reduce_and_sync(kAllLanes, all);
  decoded.positive_anywhere = __reduce_or_sync(kAllLanes, positive);
}

// The losses of one organ, and their gradients. kMixed = false: all voxels are known, none is positive.
template <bool kMixed, typename Logit>
__device__ __forceinline__ float losses(const Pack<Logit>& pack, const Decoded<Pack<Logit>::kCount>& decoded, int bit,
                                        float scale, Pack<Logit>& gradient) {
  LossSum sum;
#pragma unroll
  for (int i = 0; i < Pack<Logit>::kCount; ++i) {
    const float z = pack.get(i);
    const float slope =
        kMixed ? masked_bce<Logit>(z, sign_where(decoded.positive[i], bit), ones_where(decoded.known[i], bit), sum)
               : bce<Logit>(z, 0u, sum);
    gradient.set(i, slope * scale);
  }
  return sum.total();
}

// All organs of a word on one tile. logits, gradient: of the word's first organ, at the tile's first voxel.
template <typename Logit, int kWidth>
__device__ __forceinline__ void tile_losses(const Problem& p, const Logit* logits, Logit* gradient, std::int64_t length,
                                            int organs, float scale, const Decoded<Pack<Logit>::kCount>& decoded,
                                            double* sums) {
  using Places = Layout<Logit, kWidth>;
  const unsigned wanted = organs == kWordBits ? decoded.known_anywhere : decoded.known_anywhere & ((1u << organs) - 1);
  Pack<Logit> next = {};
  if (wanted & 1u) Places::load(logits, length, next);
  for (int bit = 0; bit < organs; ++bit) {
    const Pack<Logit> pack = next;
    Pack<Logit> slopes = {};
    logits += p.voxels;
    if (bit + 1 < kWordBits && (wanted >> (bit + 1) & 1u)) Places::load(logits, length, next);
    if (wanted >> bit & 1u) {
      const bool clean = (decoded.known_everywhere & ~decoded.positive_anywhere) >> bit & 1u;
      const float loss = clean ? losses<false, Logit>(pack, decoded, bit, scale, slopes)
                               : losses<true, Logit>(pack, decoded, bit, scale, slopes);
      const float sum = warp_sum(loss);
      if (lane_of_thread() == 0) sums[bit] += static_cast<double>(sum);
    }
    if (gradient != nullptr) {
      Places::store(gradient, length, slopes);
      gradient += p.voxels;
    }
  }
}

// 1 / max(count, 1), to 2^-44. A division would be a call, and calls spill registers.
__device__ __forceinline__ double reciprocal(Count count) {
  const double divisor = static_cast<double>(count > 0 ? count : 1);
  const double guess = static_cast<double>(__fdividef(1.0f, static_cast<float>(divisor)));
  return fma(guess, fma(-divisor, guess, 1.0), guess);
}

// 1 / the known pairs of the batch; all threads of the block.
__device__ __forceinline__ double reciprocal_of_pairs(const Problem& p, Shared& shared) {
  Count own = 0;
  for (std::int64_t part = threadIdx.x; part < p.batch * p.known.parts; part += kThreads)
    own += __ldg(p.known.pairs + part);
  own = warp_sum(own);
  if (lane_of_thread() == 0) shared.pairs[warp_of_thread()] = own;
  __syncthreads();
  Count pairs = 0;
  for (int warp = 0; warp < kWarps; ++warp) pairs += shared.pairs[warp];
  return reciprocal(pairs);
}

// The known voxels of an image's organs.
__device__ __forceinline__ void add_counts(const Problem& p, std::int64_t image) {
  for (std::int64_t organ = threadIdx.x; organ < p.organs; organ += kThreads) {
    Count known = 0;
    for (std::int64_t part = 0; part < p.known.parts; ++part)
      known += __ldg(p.known.organs + (image * p.known.parts + part) * p.organs + organ);
    p.counts[image * p.organs + organ] = static_cast<std::int64_t>(known);
  }
}

// Whether this block is the last of `blocks` to come here; all its threads then see what the others have written.
__device__ __forceinline__ bool is_last(unsigned* ticket, unsigned blocks, Shared& shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.last = atomicAdd(ticket, 1u) + 1 == blocks;
  __syncthreads();
  const bool last = shared.last;
  if (last) __threadfence();
  return last;
}

// The sums of a group's blocks, organ by organ.
__device__ __forceinline__ void sum_group(const Problem& p, std::int64_t image, unsigned group, unsigned members) {
  const unsigned lane = lane_of_thread();
#pragma unroll 4
  for (std::int64_t organ = warp_of_thread(); organ < p.organs; organ += kWarps) {
    const std::int64_t channel = image * p.organs + organ;
    const double* own = p.partials + channel * p.blocks + group * kGroup;
    const double sum = warp_sum(lane < members ? __ldcg(own + lane) : 0.0);
    if (lane == 0) p.group_sums[channel * p.groups + group] = sum;
  }
}

// The sums of all channels, and the loss.
__device__ __forceinline__ void sum_channels(const Problem& p, Shared& shared) {
  double own = 0.0;
  for (std::int64_t channel = threadIdx.x; channel < p.batch * p.organs; channel += kThreads) {
    double sum = 0.0;
    for (unsigned group = 0; group < p.groups; ++group) sum += __ldcg(p.group_sums + channel * p.groups + group);
    p.sums[channel] = sum;
    own += sum;
  }
  own = warp_sum(own);
  if (lane_of_thread() == 0) shared.sums[warp_of_thread()] = own;
  const double scale = p.mean ? reciprocal_of_pairs(p, shared) : 1.0;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) total += shared.sums[warp];
  *p.loss = static_cast<float>(total * scale);
}

template <typename Logit, int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth == 1          ? 1
                                            : sizeof(Logit) == 4 ? 8
                                                                 : 6) losses_kernel(Problem p) {
  using Places = Layout<Logit, kWidth>;
  SMILE_FAST_SHARED(Shared, shared);
  const std::int64_t image = blockIdx.x / p.blocks, block = blockIdx.x % p.blocks;
  const int thread = threadIdx.x;
  const float scale = p.divides ? static_cast<float>(reciprocal_of_pairs(p, shared)) : 1.0f;
  const std::uint8_t* labels = p.labels + image * p.voxels;
  const std::int64_t begin = block * p.tiles * Places::kTile;
  const std::int64_t rest = begin + p.tiles * Places::kTile;
  const std::int64_t end = rest < p.voxels ? rest : p.voxels;
  for (std::int64_t word = 0; word < p.words; ++word) {
    const std::int64_t organ = word * kWordBits;
    const int organs = static_cast<int>(p.organs - organ < kWordBits ? p.organs - organ : kWordBits);
    for (int label = thread; label < kLabelValues; label += kThreads) {
      const std::uint32_t* row = p.table + (image * kLabelValues + label) * 2 * p.words + word;
      shared.rows[label] = make_uint2(__ldg(row), __ldg(row + p.words));
    }
    shared.losses[thread / kWordBits][thread % kWordBits] = 0.0;
    __syncthreads();
    for (std::int64_t first = begin; first < end; first += Places::kTile) {
      const std::int64_t length = p.voxels - first;
      Decoded<Pack<Logit>::kCount> decoded;
      decode<Logit, kWidth>(labels + first, length, shared.rows, decoded);
      const std::int64_t offset = (image * p.organs + organ) * p.voxels + first;
      Logit* gradient = p.gradient == nullptr ? nullptr : static_cast<Logit*>(p.gradient) + offset;
      tile_losses<Logit, kWidth>(p, static_cast<const Logit*>(p.logits) + offset, gradient, length, organs, scale,
                                 decoded, shared.losses[warp_of_thread()]);
    }
    __syncthreads();
    if (thread < organs) {
      double sum = 0.0;
      for (int warp = 0; warp < kWarps; ++warp) sum += shared.losses[warp][thread];
      p.partials[(image * p.organs + organ + thread) * p.blocks + block] = sum;
    }
    __syncthreads();
  }
  if (block == 0) add_counts(p, image);
  const unsigned group = static_cast<unsigned>(block) / kGroup, rest_of_image = p.blocks - group * kGroup;
  const unsigned members = rest_of_image < kGroup ? rest_of_image : kGroup;
  if (!is_last(p.tickets + image * p.groups + group, members, shared)) return;
  sum_group(p, image, group, members);
  const unsigned groups = static_cast<unsigned>(p.batch) * p.groups;
  if (is_last(p.tickets + groups, groups, shared)) sum_channels(p, shared);
}

static_assert(kThreads == kWarps * kWordBits, "a thread clears one sum");

constexpr std::int64_t kManyTiles = 2048;  // from so many on, a block takes several: the table is loaded once for them

struct Cut {
  std::int64_t tiles;   // of one block
  std::int64_t blocks;  // of one image, at least 1: one adds up
  std::int64_t groups() const { return ceil_div(blocks, kGroup); }
};

// By the sizes alone, so that every GPU sums in the same order.
Cut cut(const MaskedBceArguments& a) {
  const std::int64_t tile = kThreads * (a.dtype == DType::float32 ? 8 : 16);
  const std::int64_t all = ceil_div(a.voxels, tile);
  const std::int64_t wanted = ceil_div(all * a.batch, kManyTiles);
  const std::int64_t tiles = wanted > 8 ? 8 : wanted > 1 ? wanted : 1;
  return {tiles, a.voxels > 0 ? ceil_div(all, tiles) : 1};
}

struct Workspace {
  WorkspaceArena arena;
  LabelCounts known;
  std::int64_t ticket_count;
  unsigned* tickets;
  double* partials;
  double* group_sums;

  Workspace(void* memory, const MaskedBceArguments& a)
      : arena(memory),
        known(arena, a.batch, a.organs, a.voxels),
        ticket_count(a.batch * cut(a).groups() + 1),
        tickets(arena.take<unsigned>(ticket_count)),
        partials(arena.take<double>(a.batch * a.organs * cut(a).blocks)),
        group_sums(arena.take<double>(a.batch * a.organs * cut(a).groups())) {}
};

template <typename Logit>
void queue_losses(const MaskedBceArguments& a, const Problem& p, void* stream) {
  constexpr int kWidth = 16 / sizeof(Logit);
  const bool wide =
      a.voxels % kWidth == 0 && aligned(a.logits, 16) && aligned(a.gradient, 16) && aligned(a.labels, kWidth);
  launch("masked_bce", wide ? losses_kernel<Logit, kWidth> : losses_kernel<Logit, 1>, a.batch * p.blocks, kThreads,
         stream, p);
}

}  // namespace

std::size_t masked_bce_cuda_workspace(const MaskedBceArguments& a) { return Workspace(nullptr, a).arena.bytes(); }

void masked_bce_cuda(const MaskedBceArguments& a, void* workspace, void* stream) {
  if (a.batch == 0) return clear(a.loss, sizeof(float), stream);
  const Workspace work(workspace, a);
  count_labels(a.labels, a.table, a.batch, a.organs, a.voxels, work.known, work.tickets, work.ticket_count, stream);
  const Cut pieces = cut(a);
  const Problem p{a.logits,
                  a.labels,
                  a.table,
                  a.gradient,
                  work.partials,
                  work.group_sums,
                  work.tickets,
                  a.sums,
                  a.counts,
                  a.loss,
                  work.known,
                  a.batch,
                  a.organs,
                  ceil_div(a.organs, kWordBits),
                  a.voxels,
                  static_cast<unsigned>(pieces.blocks),
                  static_cast<unsigned>(pieces.groups()),
                  pieces.tiles,
                  a.mean,
                  divides_gradient(a.dtype, a.mean)};
  switch (a.dtype) {
    case DType::float32:
      return queue_losses<float>(a, p, stream);
    case DType::bfloat16:
      return queue_losses<BFloat16>(a, p, stream);
    case DType::float16:
      return queue_losses<Float16>(a, p, stream);
  }
}

}  // namespace smile_fast
