// From label values to bits: the supervision of a run of voxels, for 32 organs at a time.
#pragma once

#include "core/common/simd.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {

constexpr int kRun = 128;  // voxels decoded, and skipped, at a time: 1 KB of words

// The known and positive bits of up to kRun voxels. The summaries always are there; the words only if some organ has
// positives or the voxels differ. Behind the last voxel, nothing is known.
struct Run {
  alignas(64) std::uint32_t known[kRun];
  alignas(64) std::uint32_t positive[kRun];
  std::uint32_t known_anywhere;
  std::uint32_t known_everywhere;
  std::uint32_t positive_anywhere;
};

// Whether all `length` labels are the same.
SMILE_FAST_INLINE bool uniform(const std::uint8_t* labels, int length) {
  std::uint8_t differing = 0;
  for (int i = 0; i < length; ++i) differing |= labels[i] ^ labels[0];
  return differing == 0;
}

constexpr int kLabelGroup = 8;  // labels of one 64-bit word: where a run is not uniform, most of its groups still are
using Group = std::uint32_t __attribute__((vector_size(4 * kLabelGroup)));

SMILE_FAST_INLINE bool uniform_group(const std::uint8_t* labels) {
  const auto word = load_as<std::uint64_t>(labels);
  return word == (word << 8 | word >> 56);
}

// rows: the table of one image, shifted to the word in question; row l starts at rows + 2 * words * l.
SMILE_FAST_INLINE void decode(const std::uint8_t* labels, int length, const std::uint32_t* rows, std::int64_t words,
                              Run& run) {
  std::uint32_t any = 0, all = ~0u, positive_any = 0;
  const auto row_of = [&](std::uint8_t label) __attribute__((always_inline)) {
    const std::uint32_t* row = rows + 2 * words * label;
    any |= row[0];
    all &= row[0];
    positive_any |= row[words];
    return row;
  };
  if (uniform(labels, length)) {  // most runs: background
    row_of(labels[0]);
    if ((any & positive_any) != 0 || length != kRun) {
      for (int i = 0; i < length; ++i) {
        run.known[i] = any;
        run.positive[i] = positive_any;
      }
    }
  } else {
    for (int first = 0; first < length; first += kLabelGroup) {
      const int left = length - first;
      if (left >= kLabelGroup && uniform_group(labels + first)) {
        const std::uint32_t* row = row_of(labels[first]);
        store_as(run.known + first, Group{} + row[0]);
        store_as(run.positive + first, Group{} + row[words]);
        continue;
      }
      for (int i = first; i < first + (left < kLabelGroup ? left : kLabelGroup); ++i) {
        const std::uint32_t* row = row_of(labels[i]);
        run.known[i] = row[0];
        run.positive[i] = row[words];
      }
    }
  }
  for (int i = length; i < kRun; ++i) run.known[i] = run.positive[i] = 0;
  run.known_anywhere = any;
  run.known_everywhere = length == kRun ? all : 0;
  run.positive_anywhere = positive_any;
}

// The sign bit where bit `bit` of a word is set; all bits there.
SMILE_FAST_INLINE Words sign_where(Words words, int bit) { return (words << (31 - bit)) & 0x80000000u; }
SMILE_FAST_INLINE Words ones_where(Words words, int bit) { return (Words)((Integers)(words << (31 - bit)) >> 31); }

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
