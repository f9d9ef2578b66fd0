// Compiled once per CPU capability, see core/common/cpu_capability.h.
#include "core/select_top_fraction/select_top_fraction_kernel.h"

#include "core/select_top_fraction/bit_masks.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {
namespace {

constexpr int kAhead = 4096;  // bytes of scores between what is asked for and what is used

// The candidates of a group against a bracket, as bits.
struct GroupMasks {
  std::uint64_t above;   // the bracket
  std::uint64_t inside;  // of it
};

template <typename Score>
SMILE_FAST_INLINE GroupMasks masks_of(const Score* scores, std::uint64_t candidates, Bracket bracket) {
  using Keys = typename KeyVector<Score>::Type;
  using Key = typename ScoreFormat<Score>::Key;
  constexpr int lanes = sizeof(Keys) / sizeof(Key);
  const Keys high = Keys{} + static_cast<Key>(bracket.high), low = Keys{} + static_cast<Key>(bracket.low);
  std::uint64_t above = 0, below = 0;
  for (int i = 0; i < kGroup; i += lanes) {
    const Keys keys = load_keys(scores + i);
    above |= greater(keys, high) << i;
    below |= greater(low, keys) << i;
  }
  return {candidates & above, candidates & ~(above | below)};
}

// Calls body(scores, candidates as bits, selection, offset) for every group of 64 voxels that has candidates, and
// none(selection) for the others. The last, shorter group goes through buffers, where it is followed by no candidates.
template <typename Score, typename Body, typename None>
SMILE_FAST_INLINE void for_groups(const ScoreBlock& block, const Body& body, const None& none) {
  const Score* scores = static_cast<const Score*>(block.scores);
  std::int32_t offset = 0;
  for (; offset + kGroup <= block.length; offset += kGroup) {
    const std::uint64_t candidates = nonzero_bytes(block.candidates + offset);
    if (candidates == 0) {
      none(block.selection + offset);  // the scores are not even read
    } else {
      // The hardware's own prefetching stops at the end of each page of 4 KB.
      for (int ahead = 0; ahead < kGroup; ahead += 64 / sizeof(Score))
        __builtin_prefetch(reinterpret_cast<const char*>(scores + offset + ahead) + kAhead);
      __builtin_prefetch(block.candidates + offset + kAhead / 4);
      body(scores + offset, candidates, block.selection + offset, offset);
    }
  }
  if (offset == block.length) return;
  const std::size_t rest = static_cast<std::size_t>(block.length - offset);
  Score last_scores[kGroup] = {};
  std::uint8_t last_candidates[kGroup] = {};
  alignas(kStreamAlignment) std::uint8_t last_selection[kGroup] = {};
  memcpy(last_scores, scores + offset, rest * sizeof(Score));
  memcpy(last_candidates, block.candidates + offset, rest);
  memcpy(last_selection, block.selection + offset, rest);
  const std::uint64_t candidates = nonzero_bytes(last_candidates);
  if (candidates == 0)
    none(last_selection);
  else
    body(last_scores, candidates, last_selection, offset);
  memcpy(block.selection + offset, last_selection, rest);
}

template <typename Score, bool kStore, bool kStreamed>
SMILE_FAST_INLINE BlockCounts scan(const ScoreBlock& block, Bracket bracket, Entry* entries) {
  BlockCounts counts = {};
  for_groups<Score>(
      block,
      [&](const Score* scores, std::uint64_t candidates, std::uint8_t* selection, std::int32_t offset) {
        const GroupMasks found = masks_of(scores, candidates, bracket);
        store_bytes<kStreamed>(selection, found.above);
        counts.candidates += count_bits(candidates);
        counts.above += count_bits(found.above);
        if constexpr (kStore) {
          for (std::uint64_t open = found.inside; open != 0; open &= open - 1) {
            const int i = __builtin_ctzll(open);
            entries[counts.inside++] = {key_of(scores[i]), static_cast<std::uint32_t>(offset + i)};
          }
        } else {
          counts.inside += count_bits(found.inside);
        }
      },
      [](std::uint8_t* selection) { store_bytes<kStreamed>(selection, 0); });
  if constexpr (kStreamed) finish_streams();
  return counts;
}

template <typename Score, bool kStore>
SMILE_FAST_INLINE BlockCounts scan(const ScoreBlock& block, Bracket bracket, Entry* entries, bool streamed) {
  return streamed && reinterpret_cast<std::uintptr_t>(block.selection) % kStreamAlignment == 0
             ? scan<Score, kStore, true>(block, bracket, entries)
             : scan<Score, kStore, false>(block, bracket, entries);
}

template <typename Score>
SMILE_FAST_INLINE BlockCounts scan(const ScoreBlock& block, Bracket bracket, Entry* entries, bool streamed) {
  return entries != nullptr ? scan<Score, true>(block, bracket, entries, streamed)
                            : scan<Score, false>(block, bracket, entries, streamed);
}

template <typename Score>
SMILE_FAST_INLINE void count(const ScoreBlock& block, const Bins& bins, std::uint32_t* counts) {
  for_groups<Score>(
      block,
      [&](const Score* scores, std::uint64_t candidates, std::uint8_t*, std::int32_t) {
        for (std::uint64_t open = masks_of(scores, candidates, bins.bracket).inside; open != 0; open &= open - 1)
          ++counts[bins.bin(key_of(scores[__builtin_ctzll(open)]))];
      },
      [](std::uint8_t*) {});
}

template <typename Score>
SMILE_FAST_INLINE void ties(const ScoreBlock& block, std::int32_t key, std::uint32_t left) {
  for_groups<Score>(
      block,
      [&](const Score* scores, std::uint64_t candidates, std::uint8_t* selection, std::int32_t) {
        std::uint64_t tied = masks_of(scores, candidates, {key, key}).inside;
        if (tied == 0 || left == 0) return;
        if (count_bits(tied) > left) tied = lowest_bits(tied, left);
        left -= count_bits(tied);
        store_bytes<false>(selection, nonzero_bytes(selection) | tied);
      },
      [](std::uint8_t*) {});
}

}  // namespace

BlockCounts scan_kernel(const ScoreBlock& block, Bracket bracket, Entry* entries, bool streamed) {
  switch (block.dtype) {
    case DType::float32:
      return scan<float>(block, bracket, entries, streamed);
    case DType::bfloat16:
      return scan<BFloat16>(block, bracket, entries, streamed);
    case DType::float16:
      return scan<Float16>(block, bracket, entries, streamed);
  }
  __builtin_unreachable();
}

void histogram_kernel(const ScoreBlock& block, const Bins& bins, std::uint32_t* counts) {
  switch (block.dtype) {
    case DType::float32:
      return count<float>(block, bins, counts);
    case DType::bfloat16:
      return count<BFloat16>(block, bins, counts);
    case DType::float16:
      return count<Float16>(block, bins, counts);
  }
}

void select_ties_kernel(const ScoreBlock& block, std::int32_t key, std::uint32_t count) {
  switch (block.dtype) {
    case DType::float32:
      return ties<float>(block, key, count);
    case DType::bfloat16:
      return ties<BFloat16>(block, key, count);
    case DType::float16:
      return ties<Float16>(block, key, count);
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
