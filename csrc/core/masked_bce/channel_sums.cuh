// What the losses share before and after their own kernel: a histogram of the labels, and the sum of each channel.
//
// Both are deterministic: integers are added atomically, floating-point numbers in an order that the sizes fix.
#pragma once

#include <cstdint>

#include "core/common/cuda_kernel.cuh"
#include "core/masked_bce/label_counts.h"

namespace smile_fast::cuda {

struct LabelHistograms {
  Count* bins;   // [batch, 256]
  Count* known;  // [1]: (voxel, organ) pairs that are known, in the whole batch

  LabelHistograms(WorkspaceArena& arena, std::int64_t batch)
      : bins(arena.take<Count>(batch * kLabelValues + 1)), known(bins + batch * kLabelValues) {}
};

// Queues: labels [batch, voxels], table [batch, 256, 2, ceil(organs / 32)] -> histograms. Two launches.
void count_labels(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t batch, std::int64_t organs,
                  std::int64_t voxels, const LabelHistograms& histograms, void* stream);

// Queues: partials [batch * organs, parts] -> sums [batch, organs], and histograms -> counts [batch, organs].
void sum_channels(const double* partials, std::int64_t parts, const LabelHistograms& histograms,
                  const std::uint32_t* table, std::int64_t batch, std::int64_t organs, double* sums,
                  std::int64_t* counts, void* stream);

}  // namespace smile_fast::cuda
