#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/common/cpu_capability.h"
#include "core/common/parallel.h"
#include "core/upsampled_labels/label_map_upsampled.h"
#include "core/upsampled_labels/label_map_upsampled_kernel.h"

namespace smile_fast {
namespace {

constexpr std::int64_t kRowsAtOnce = 8;  // rows of cells of one work item

std::int64_t words_of(const LabelMapUpsampledArguments& a) { return (a.channels + 31) / 32; }

// Some ten kilobytes, which malloc reuses: a work item takes them for itself.
std::unique_ptr<std::byte[]> scratch_memory(const LabelMapUpsampledArguments& a) {
  const std::int64_t elements = (3 * a.channels + 1 + 1 + words_of(a) + 1) * a.grid.pitch();
  return std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(elements) * sizeof(float));
}

LabelMapScratch scratch_in(std::byte* memory, const LabelMapUpsampledArguments& a) {
  const std::int64_t pitch = a.grid.pitch();
  LabelMapScratch scratch{};
  scratch.pairs = reinterpret_cast<float*>(memory);
  scratch.highest = scratch.pairs + 2 * a.channels * pitch;
  scratch.floor = scratch.highest + a.channels * pitch;
  scratch.owner = reinterpret_cast<std::int32_t*>(scratch.floor + pitch);
  scratch.candidates = reinterpret_cast<std::uint32_t*>(scratch.owner + pitch);
  scratch.settled = reinterpret_cast<std::uint8_t*>(scratch.candidates + words_of(a) * pitch);
  return scratch;
}

}  // namespace

void label_map_upsampled_cpu(const LabelMapUpsampledArguments& a, int threads) {
  if (a.images * a.grid.high_height * a.grid.high_width == 0) return;
  const std::vector<double> weights = corner_weights(a.grid);
  const std::int64_t items = (a.grid.cell_rows() + kRowsAtOnce - 1) / kRowsAtOnce;  // of one image
  LabelMapUpsampledKernel* const kernel = SMILE_FAST_DISPATCH(label_map_upsampled_kernel);
  parallel_for(a.images * items, threads, [&](std::int64_t item) {
    const std::int64_t begin = item % items * kRowsAtOnce;
    const std::int64_t end = std::min(begin + kRowsAtOnce, a.grid.cell_rows());
    const auto memory = scratch_memory(a);
    kernel(a, weights.data(), item / items, begin, end, scratch_in(memory.get(), a));
  });
}

}  // namespace smile_fast
