// Compiled once per CPU capability, see core/common/cpu_capability.h.
#include "core/upsampled_labels/label_map_upsampled_kernel.h"

#include "core/upsampled_labels/cells.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {
namespace {

constexpr int kWordBits = 32;
constexpr int kMaxChannels = 127;
constexpr std::uint8_t kUnsettled = 255;
constexpr int kVectors = kLanes >= 16 ? 8 : 4;  // of doubles, whose winners fit into registers
constexpr int kChunk = kVectors * kDoubles;     // pixels
static_assert(kPatchMultiple % kChunk == 0);

// A channel that may win pixels of a cell.
struct Candidate {
  Corners corners;
  std::int64_t label;
};

// The corners' ranges of a row of cells, and what follows: floor, owner and `highest` of the scratch.
//
// A channel's values in a cell lie between its corners. So the channel with the highest lowest corner, or the
// background with its constant 0, beats every other one whose highest corner is lower.
template <typename Logit>
SMILE_FAST_INLINE void rank_corners(const LabelMapUpsampledArguments& a, const Logit* image, std::int64_t cell_row,
                                    const LabelMapScratch& scratch) {
  const CellGrid& grid = a.grid;
  const std::int64_t pitch = grid.pitch();
  for (std::int64_t cell = 0; cell < grid.cells(); cell += kLanes) {
    store(scratch.floor + cell, splat(a.softmax ? -__builtin_inff() : 0.0f));
    store_as(scratch.owner + cell, ~Integers{});
  }
  for (std::int64_t channel = 0; channel < a.channels; ++channel) {
    const Logit* below = image + (channel * grid.low_height + row_below(grid, cell_row)) * grid.low_width;
    float* highest = scratch.highest + channel * pitch;
    for_corner_ranges(below, grid, scratch.pairs + 2 * channel * pitch,
                      [&](std::int64_t cell, Floats low, Floats high) {
                        store(highest + cell, high);
                        const Floats floor = load(scratch.floor + cell);
                        const Integers owner = load_as<Integers>(scratch.owner + cell);
                        store(scratch.floor + cell, low > floor ? low : floor);
                        const Integers number = Integers{} + static_cast<std::int32_t>(channel);
                        store_as(scratch.owner + cell, low > floor ? number : owner);
                      });
  }
}

// Which channels may win a pixel of each cell, and which cells need no look at their pixels.
SMILE_FAST_INLINE void find_candidates(const LabelMapUpsampledArguments& a, const LabelMapScratch& scratch) {
  const std::int64_t pitch = a.grid.pitch();
  for (std::int64_t cell = 0; cell < a.grid.cells(); cell += kLanes) {
    const Floats floor = load(scratch.floor + cell);
    const Integers owner = load_as<Integers>(scratch.owner + cell);
    Integers others = {};  // minus the number of candidates beside the owner
    for (std::int64_t first = 0; first < a.channels; first += kWordBits) {
      Words word = {};
      for (std::int64_t channel = first; channel < smaller(first + kWordBits, a.channels); ++channel) {
        const Floats high = load(scratch.highest + channel * pitch + cell);
        const Integers number = Integers{} + static_cast<std::int32_t>(channel);
        // A tie goes to the lower label: it matters only to channels below the owner, and to the owner itself.
        const Integers possible = (high > floor) | ((high == floor) & (number <= owner));
        others += possible & (number != owner);
        word |= (Words)possible & (1u << (channel - first));
      }
      store_as(scratch.candidates + first / kWordBits * pitch + cell, word);
    }
    const Integers label = owner + (a.softmax ? 0 : 1);
    const Integers settled = others == 0 ? label : Integers{} + kUnsettled;
    for (int lane = 0; lane < kLanes; ++lane) scratch.settled[cell + lane] = static_cast<std::uint8_t>(settled[lane]);
  }
}

// All pixels of a row of cells, as if all cells were settled: one row of pixels from runs of equal cells, then copies.
SMILE_FAST_INLINE void fill_settled(const LabelMapUpsampledArguments& a, std::uint8_t* image, std::int64_t cell_row,
                                    const std::uint8_t* settled) {
  const CellGrid& grid = a.grid;
  const std::int64_t begin = larger(grid.first_pixel(cell_row), 0);
  const std::int64_t end = smaller(grid.first_pixel(cell_row) + grid.stride, grid.high_height);
  if (begin >= end) return;
  std::uint8_t* first = image + begin * grid.high_width;
  std::int64_t cell = 0;
  for (std::int64_t column = 0; column < grid.high_width;) {
    std::int64_t next = cell + 1;
    while (next < grid.cells() && settled[next] == settled[cell]) ++next;
    const std::int64_t stop = next < grid.cells() ? smaller(grid.first_pixel(next), grid.high_width) : grid.high_width;
    memset(first + column, settled[cell], static_cast<std::size_t>(stop - column));
    column = stop;
    cell = next;
  }
  for (std::int64_t row = begin + 1; row < end; ++row)
    memcpy(image + row * grid.high_width, first, static_cast<std::size_t>(grid.high_width));
}

template <typename Logit>
SMILE_FAST_INLINE int list_candidates(const LabelMapUpsampledArguments& a, const Logit* image, std::int64_t cell_row,
                                      std::int64_t cell, const std::uint32_t* bits, Candidate* candidates) {
  const CellGrid& grid = a.grid;
  int count = 0;
  for (std::int64_t first = 0; first < a.channels; first += kWordBits, bits += grid.pitch()) {
    for (std::uint32_t word = bits[cell]; word != 0; word &= word - 1) {
      const std::int64_t channel = first + __builtin_ctz(word);
      candidates[count++] = {corners_of(image + channel * grid.low_height * grid.low_width, grid, cell_row, cell),
                             channel + (a.softmax ? 0 : 1)};
    }
  }
  return count;
}

// The labels of kChunk pixels of a patch.
SMILE_FAST_INLINE void label_chunk(const double* weights, std::int64_t patch, const Candidate* candidates, int count,
                                   double floor, std::uint8_t* labels) {
  Doubles best[kVectors];
  Longs winner[kVectors];
  for (int i = 0; i < kVectors; ++i) best[i] = Doubles{} + floor, winner[i] = Longs{};
  for (const Candidate* candidate = candidates; candidate != candidates + count; ++candidate) {
    for (int i = 0; i < kVectors; ++i) {
      const Doubles value = interpolate(weights + i * kDoubles, patch, candidate->corners);
      const Longs wins = value > best[i];
      winner[i] = wins ? Longs{} + candidate->label : winner[i];
      best[i] = wins ? value : best[i];
    }
  }
  for (int i = 0; i < kVectors; ++i)
    for (int lane = 0; lane < kDoubles; ++lane)
      labels[i * kDoubles + lane] = static_cast<std::uint8_t>(winner[i][lane]);
}

// The pixels of the cells of a row whose corners do not decide.
template <typename Logit>
SMILE_FAST_INLINE void label_unsettled(const LabelMapUpsampledArguments& a, const double* weights, const Logit* logits,
                                       std::uint8_t* labels, std::int64_t cell_row, const LabelMapScratch& scratch) {
  const CellGrid& grid = a.grid;
  const double floor = a.softmax ? -__builtin_inf() : 0.0;
  for (std::int64_t cell = 0; cell < grid.cells(); ++cell) {
    if (scratch.settled[cell] != kUnsettled) continue;
    Candidate candidates[kMaxChannels];
    const int count = list_candidates(a, logits, cell_row, cell, scratch.candidates, candidates);
    std::uint8_t patch[kMaxStride * kMaxStride];
    for (std::uint32_t pixel = 0; pixel < grid.pixels(); pixel += kChunk)
      label_chunk(weights + pixel, grid.patch(), candidates, count, floor, patch + pixel);
    for_rows_of(patch_window(grid, cell_row, cell), grid, [&](std::int64_t to, std::int64_t from, std::int64_t length) {
      copy_row(labels + to, patch + from, length);
    });
  }
}

template <typename Logit>
SMILE_FAST_INLINE void label_rows_of_cells(const LabelMapUpsampledArguments& a, const double* weights,
                                           std::int64_t image, std::int64_t begin, std::int64_t end,
                                           const LabelMapScratch& scratch) {
  const CellGrid& grid = a.grid;
  const std::int64_t low_size = grid.low_height * grid.low_width;
  const Logit* logits = static_cast<const Logit*>(a.logits) + image * a.channels * low_size;
  std::uint8_t* labels = a.labels + image * grid.high_height * grid.high_width;
  for (std::int64_t channel = 0; channel < a.channels; ++channel)
    start_pairs(logits + channel * low_size, grid, begin, scratch.pairs + 2 * channel * grid.pitch());
  for (std::int64_t cell_row = begin; cell_row < end; ++cell_row) {
    rank_corners(a, logits, cell_row, scratch);
    find_candidates(a, scratch);
    fill_settled(a, labels, cell_row, scratch.settled);
    label_unsettled(a, weights, logits, labels, cell_row, scratch);
  }
}

}  // namespace

void label_map_upsampled_kernel(const LabelMapUpsampledArguments& a, const double* weights, std::int64_t image,
                                std::int64_t begin, std::int64_t end, const LabelMapScratch& scratch) {
  switch (a.dtype) {
    case DType::float32:
      return label_rows_of_cells<float>(a, weights, image, begin, end, scratch);
    case DType::bfloat16:
      return label_rows_of_cells<BFloat16>(a, weights, image, begin, end, scratch);
    case DType::float16:
      return label_rows_of_cells<Float16>(a, weights, image, begin, end, scratch);
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
