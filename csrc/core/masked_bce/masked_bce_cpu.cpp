#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/common/cpu_capability.h"
#include "core/common/parallel.h"
#include "core/masked_bce/label_counts.h"
#include "core/masked_bce/masked_bce.h"
#include "core/masked_bce/masked_bce_kernel.h"

namespace smile_fast {
namespace {

// Voxels of one work item, and of one partial sum: whole chunks of the kernels.
constexpr std::int64_t kBlock = 9 * 896;

}  // namespace

void masked_bce_cpu(const MaskedBceArguments& a, int threads) {
  count_known(a.labels, a.table, a.batch, a.organs, a.voxels, a.counts, threads);
  const std::int64_t known = a.mean ? known_pairs(a.counts, a.batch * a.organs) : 1;
  const float divisor = divides_gradient(a.dtype, a.mean) ? static_cast<float>(known) : 1.0f;

  const std::int64_t blocks = (a.voxels + kBlock - 1) / kBlock;  // of one image
  const std::int64_t items = a.batch * blocks;
  std::vector<double> sums(static_cast<std::size_t>(items * a.organs));
  MaskedBceKernel* const kernel = SMILE_FAST_DISPATCH(masked_bce_kernel);
  parallel_for(items, threads, [&](std::int64_t item) {
    const std::int64_t begin = item % blocks * kBlock;
    kernel(a, item / blocks, begin, std::min(begin + kBlock, a.voxels), divisor, &sums[item * a.organs]);
  });

  // Partial results are combined in the order of the voxels, whichever thread made them.
  std::fill_n(a.sums, a.batch * a.organs, 0.0);
  for (std::int64_t item = 0; item < items; ++item)
    for (std::int64_t organ = 0; organ < a.organs; ++organ)
      a.sums[item / blocks * a.organs + organ] += sums[item * a.organs + organ];
  *a.loss = reduced_loss(a.sums, a.batch * a.organs, known);
}

}  // namespace smile_fast
