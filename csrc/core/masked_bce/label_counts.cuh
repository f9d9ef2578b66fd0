// Known voxels on the device: what masked_bce divides by, from the labels alone.
//
// Each part of an image is counted by a block of its own, into a place of its own: nothing has to be cleared before,
// and nothing is added atomically between blocks.
#pragma once

#include <cstdint>

#include "core/common/cuda_kernel.cuh"
#include "core/masked_bce/label_counts.h"

namespace smile_fast::cuda {

struct LabelCounts {
  std::int64_t parts;  // of an image, at least 1
  std::int64_t chunk;  // labels of a part
  unsigned* organs;    // [batch, parts, organs]: known voxels
  Count* pairs;        // [batch, parts]: known (voxel, organ) pairs

  LabelCounts(WorkspaceArena& arena, std::int64_t batch, std::int64_t organs, std::int64_t voxels);
};

// Queues: labels [batch, voxels], table [batch, 256, 2, ceil(organs / 32)] -> counts; and clears the tickets, with
// which the blocks of the next launch find out which of them is the last. One launch; the batch must not be empty.
void count_labels(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t batch, std::int64_t organs,
                  std::int64_t voxels, const LabelCounts& counts, unsigned* tickets, std::int64_t ticket_count,
                  void* stream);

}  // namespace smile_fast::cuda
