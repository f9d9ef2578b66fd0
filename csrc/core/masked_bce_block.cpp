// Compiled once per target, see core/targets.h.
#include "core/masked_bce_block.h"

#include <math.h>
#include <string.h>

#include "core/exp.h"
#include "core/float_formats.h"
#include "core/targets.h"

namespace smile_fast::SMILE_FAST_TARGET {
namespace {

constexpr std::int64_t kTile = 1024;  // voxels whose labels are decoded at a time: 8 KB of words, in L1
constexpr int kChunk = 512;           // voxels whose losses are summed at a time
constexpr int kLanes = 8;             // float partial sums of a chunk; 2^(512 / 8) is a float

SMILE_FAST_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// The supervision of a tile for 32 organs: their known and positive bits, voxel by voxel.
struct Tile {
  alignas(64) std::uint32_t known[kTile];
  alignas(64) std::uint32_t positive[kTile];
  std::uint32_t known_anywhere;
  std::uint32_t known_everywhere;
  std::uint32_t positive_anywhere;
};

// rows: the table of one image, shifted to the word in question; row l starts at rows + 2 * words * l.
SMILE_FAST_INLINE void decode(const std::uint8_t* labels, int length, const std::uint32_t* rows, std::int64_t words,
                              Tile& tile) {
  std::uint32_t any = 0, all = ~0u, positive_any = 0;
  std::uint8_t differing = 0;
  for (int i = 0; i < length; ++i) differing |= labels[i] ^ labels[0];
  if (differing == 0) {  // most tiles: background
    const std::uint32_t* row = rows + 2 * words * labels[0];
    any = all = row[0];
    positive_any = row[words];
    for (int i = 0; i < length; ++i) {
      tile.known[i] = row[0];
      tile.positive[i] = row[words];
    }
  } else {
    for (int i = 0; i < length; ++i) {
      const std::uint32_t* row = rows + 2 * words * labels[i];
      tile.known[i] = row[0];
      tile.positive[i] = row[words];
      any |= row[0];
      all &= row[0];
      positive_any |= row[words];
    }
  }
  tile.known_anywhere = any;
  tile.known_everywhere = all;
  tile.positive_anywhere = positive_any;
}

// The two halves of a loss, softplus(x) = max(x, 0) + log(1 + e) with e = exp(-|x|), for the voxels of a chunk.
//
// Logarithms are expensive, so the sum of the second halves is taken as the log of a product: `excess` holds
// prod(1 + e) - 1, and two of them combine as (1 + a)(1 + b) - 1 = a + b + ab, which keeps small values exact.
struct Chunk {
  alignas(64) float linear[kChunk];
  alignas(64) float excess[kChunk];
};

template <int kWidth>
SMILE_FAST_INLINE void fold(Chunk& chunk) {
  for (int i = 0; i < kWidth; ++i) {
    const float a = chunk.excess[i], b = chunk.excess[i + kWidth];
    chunk.linear[i] += chunk.linear[i + kWidth];
    chunk.excess[i] = a + (b + a * b);
  }
  if constexpr (kWidth > kLanes) fold<kWidth / 2>(chunk);
}

SMILE_FAST_INLINE double total(Chunk& chunk) {
  fold<kChunk / 2>(chunk);
  double linear = 0.0, excess = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) {
    linear += chunk.linear[lane];
    excess += chunk.excess[lane] + excess * chunk.excess[lane];
  }
  return linear + log1p(excess);
}

// One organ on at most kChunk voxels. With y = 1 the sign of the logit is flipped: BCE = softplus(x) and
// dBCE/dx = sigma(x) for both labels, and no difference of nearly equal numbers is ever taken.
//
// kMixed = false: every voxel is known and none is positive; the words are not read.
template <typename Logit, bool kMixed, bool kGradient>
SMILE_FAST_INLINE void losses(const Logit* __restrict logits, Logit* __restrict gradient,
                              const std::uint32_t* __restrict known, const std::uint32_t* __restrict positive, int bit,
                              int length, Chunk& chunk, std::int64_t& count) {
  constexpr std::uint32_t sign = 0x80000000u;
  std::int32_t known_voxels = 0;
  for (int i = 0; i < length; ++i) {
    const std::uint32_t flip = kMixed ? (positive[i] << (kWordBits - 1 - bit)) & sign : 0u;
    const std::uint32_t keep = kMixed ? 0u - ((known[i] >> bit) & 1u) : ~0u;
    const std::uint32_t margin = as_bits(to_float(logits[i])) ^ flip;
    const float x = as_float(margin);
    const float e = exp_nonpositive(as_float(margin | sign));
    chunk.linear[i] = as_float(as_bits(x > 0.0f ? x : 0.0f) & keep);
    chunk.excess[i] = as_float(as_bits(e) & keep);
    if constexpr (kGradient) {
      const float slope = (x >= 0.0f ? 1.0f : e) / (1.0f + e);  // sigma(x)
      const std::uint32_t signed_slope = as_bits(slope) ^ flip;
      gradient[i] = from_float<Logit>(as_float(signed_slope & keep));
    }
    known_voxels += static_cast<std::int32_t>(keep & 1u);
  }
  for (int i = length; i < kChunk; ++i) chunk.linear[i] = chunk.excess[i] = 0.0f;
  count += known_voxels;
}

// One organ on one tile: adds to its loss and count.
template <typename Logit, bool kGradient>
SMILE_FAST_INLINE void organ_on_tile(const Logit* logits, Logit* gradient, const Tile& tile, int bit, int length,
                                     double& sum, std::int64_t& count) {
  if (((tile.known_anywhere >> bit) & 1u) == 0) {  // nothing is known here: the logits need not be read
    if constexpr (kGradient) memset(static_cast<void*>(gradient), 0, length * sizeof(Logit));
    return;
  }
  const bool mixed = ((tile.known_everywhere & ~tile.positive_anywhere) >> bit & 1u) == 0;
  for (int start = 0; start < length; start += kChunk) {
    Chunk chunk;
    const int voxels = length - start < kChunk ? length - start : kChunk;
    Logit* out = kGradient ? gradient + start : nullptr;
    const std::uint32_t* known = tile.known + start;
    const std::uint32_t* positive = tile.positive + start;
    if (mixed)
      losses<Logit, true, kGradient>(logits + start, out, known, positive, bit, voxels, chunk, count);
    else
      losses<Logit, false, kGradient>(logits + start, out, known, positive, bit, voxels, chunk, count);
    sum += total(chunk);
  }
}

// All organs on the voxels [begin, end) of one image; writes one row of partial results.
template <typename Logit, bool kGradient>
SMILE_FAST_INLINE void block(const MaskedBceArguments& a, std::int64_t image, std::int64_t begin, std::int64_t end,
                             double* sums, std::int64_t* counts) {
  const std::int64_t words = (a.organs + kWordBits - 1) / kWordBits;
  const std::uint32_t* rows = a.table + image * kLabelValues * 2 * words;
  for (std::int64_t first = begin; first < end; first += kTile) {
    const int length = static_cast<int>(smaller(kTile, end - first));
    for (std::int64_t word = 0; word < words; ++word) {
      Tile tile;
      decode(a.labels + image * a.voxels + first, length, rows + word, words, tile);
      const std::int64_t last = smaller(a.organs, (word + 1) * kWordBits);
      for (std::int64_t organ = word * kWordBits; organ < last; ++organ) {
        const std::int64_t offset = (image * a.organs + organ) * a.voxels + first;
        Logit* gradient = kGradient ? static_cast<Logit*>(a.gradient) + offset : nullptr;
        organ_on_tile<Logit, kGradient>(static_cast<const Logit*>(a.logits) + offset, gradient, tile,
                                        static_cast<int>(organ % kWordBits), length, sums[organ], counts[organ]);
      }
    }
  }
}

template <typename Logit>
SMILE_FAST_INLINE void block(const MaskedBceArguments& a, std::int64_t image, std::int64_t begin, std::int64_t end,
                             double* sums, std::int64_t* counts) {
  a.gradient == nullptr ? block<Logit, false>(a, image, begin, end, sums, counts)
                        : block<Logit, true>(a, image, begin, end, sums, counts);
}

}  // namespace

void masked_bce_block(const MaskedBceArguments& a, std::int64_t image, std::int64_t begin, std::int64_t end,
                      double* sums, std::int64_t* counts) {
  switch (a.dtype) {
    case DType::float32:
      return block<float>(a, image, begin, end, sums, counts);
    case DType::bfloat16:
      return block<BFloat16>(a, image, begin, end, sums, counts);
    case DType::float16:
      return block<Float16>(a, image, begin, end, sums, counts);
  }
}

}  // namespace smile_fast::SMILE_FAST_TARGET
