// The inner parts of select_top_fraction_cpu: a run of voxels of one segment, one thread.
#pragma once

#include <cstdint>

#include "core/select_top_fraction/score_keys.h"

namespace smile_fast {

struct ScoreBlock {
  DType dtype;
  const void* scores;              // [length]
  const std::uint8_t* candidates;  // [length]
  std::uint8_t* selection;         // [length]
  std::int32_t length;
};

struct BlockCounts {
  std::uint32_t candidates;
  std::uint32_t above;   // candidates above the bracket
  std::uint32_t inside;  // candidates inside of it
};

// Selects the candidates above the bracket and no others. Those inside go to `entries`, which has room for all voxels,
// in the order of the voxels; if it is null they are only counted. `streamed`: the selection will have left the caches
// when it is read, so it may go past them.
using ScanKernel = BlockCounts(const ScoreBlock& block, Bracket bracket, Entry* entries, bool streamed);

// Adds the candidates inside the bins' bracket to their bins.
using HistogramKernel = void(const ScoreBlock& block, const Bins& bins, std::uint32_t* counts);

// Selects the first `count` candidates that have this key, beside what is selected already.
using SelectTiesKernel = void(const ScoreBlock& block, std::int32_t key, std::uint32_t count);

namespace plain {
ScanKernel scan_kernel;
HistogramKernel histogram_kernel;
SelectTiesKernel select_ties_kernel;
}  // namespace plain
namespace avx2 {
ScanKernel scan_kernel;
HistogramKernel histogram_kernel;
SelectTiesKernel select_ties_kernel;
}  // namespace avx2
namespace avx512 {
ScanKernel scan_kernel;
HistogramKernel histogram_kernel;
SelectTiesKernel select_ties_kernel;
}  // namespace avx512

}  // namespace smile_fast
