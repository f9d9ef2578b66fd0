#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/masked_bce.h"
#include "core/masked_bce_block.h"
#include "core/parallel.h"
#include "core/targets.h"

namespace smile_fast {
namespace {

constexpr std::int64_t kBlock = 1 << 14;  // voxels of one work item, and of one partial sum

}  // namespace

void masked_bce_cpu(const MaskedBceArguments& a, int threads) {
  const std::int64_t blocks = (a.voxels + kBlock - 1) / kBlock;  // of one image
  const std::int64_t items = a.batch * blocks;
  std::vector<double> sums(static_cast<std::size_t>(items * a.organs), 0.0);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(items * a.organs), 0);

  MaskedBceBlock* const block = SMILE_FAST_DISPATCH(masked_bce_block);
  parallel_for(items, threads, [&](std::int64_t item) {
    const std::int64_t begin = item % blocks * kBlock;
    block(a, item / blocks, begin, std::min(begin + kBlock, a.voxels), &sums[item * a.organs],
          &counts[item * a.organs]);
  });

  // Partial results are combined in the order of the voxels, whichever thread made them.
  std::fill_n(a.sums, a.batch * a.organs, 0.0);
  std::fill_n(a.counts, a.batch * a.organs, 0);
  for (std::int64_t item = 0; item < items; ++item) {
    for (std::int64_t organ = 0; organ < a.organs; ++organ) {
      a.sums[item / blocks * a.organs + organ] += sums[item * a.organs + organ];
      a.counts[item / blocks * a.organs + organ] += counts[item * a.organs + organ];
    }
  }
}

}  // namespace smile_fast
