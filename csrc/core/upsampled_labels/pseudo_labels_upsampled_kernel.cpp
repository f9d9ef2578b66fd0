// Compiled once per CPU capability, see core/common/cpu_capability.h.
#include "core/upsampled_labels/pseudo_labels_upsampled_kernel.h"

#include "core/upsampled_labels/cells.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {
namespace {

constexpr std::int32_t kNone = -1;  // the key of what is no candidate
constexpr int kPatchPixels = kMaxStride * kMaxStride;
constexpr std::uint32_t kInfinity = 0x7f800000u;

using DoubleFloats = float __attribute__((vector_size(4 * kDoubles)));  // as many as a vector of doubles
using DoubleWords = std::uint32_t __attribute__((vector_size(4 * kDoubles)));
using DoubleIntegers = std::int32_t __attribute__((vector_size(4 * kDoubles)));

// The lowest score with a key of at least `key`.
SMILE_FAST_INLINE float score_of(std::int32_t key) { return as_float(static_cast<std::uint32_t>(key) + 1); }

template <typename Logit>
SMILE_FAST_INLINE const Logit* logits_of(const PseudoLabelsUpsampledArguments& a, std::int64_t slice,
                                         std::int64_t channel) {
  return static_cast<const Logit*>(a.logits) + (slice * a.channels + channel) * a.grid.low_height * a.grid.low_width;
}

// The labels of a patch; outside of the image, one that is no candidate's.
SMILE_FAST_INLINE void load_labels(const PseudoLabelsUpsampledArguments& a, std::int64_t slice,
                                   const PatchWindow& window, std::uint8_t* labels) {
  const CellGrid& grid = a.grid;
  const bool whole = window.row_end - window.row_begin == grid.stride && window.end - window.begin == grid.stride;
  if (!whole) memset(labels, 255, kPatchPixels);
  const std::uint8_t* image = a.labels + slice * grid.high_height * grid.high_width;
  for_rows_of(window, grid, [&](std::int64_t from, std::int64_t to, std::int64_t length) {
    copy_row(labels + to, image + from, length);
  });
}

// The keys of all pixels of a patch.
SMILE_FAST_INLINE void patch_keys(const CellGrid& grid, const double* weights, const Corners& corners,
                                  const std::uint8_t* labels, std::int32_t* keys) {
  const double unit = 1.0 / (4.0 * grid.stride * grid.stride);
  for (std::uint32_t pixel = 0; pixel < grid.pixels(); pixel += kDoubles) {
    const Doubles score = interpolate(weights + pixel, grid.patch(), corners) * unit;
    const DoubleWords key = (DoubleWords) __builtin_convertvector(score, DoubleFloats) - 1u;
    using Bytes = std::uint8_t __attribute__((vector_size(kDoubles)));
    const auto label = __builtin_convertvector(load_as<Bytes>(labels + pixel), DoubleIntegers);
    // Unsigned: a score of 0, a negative one and a NaN all have larger keys than infinity's.
    const DoubleIntegers candidate = (key < kInfinity) & (label == 0);
    store_as(keys + pixel, candidate ? (DoubleIntegers)key : DoubleIntegers{} + kNone);
  }
}

// Call body(window, keys of the patch) for all cells of a slice that may have candidates with a key in [begin, end).
template <typename Logit, typename Body>
SMILE_FAST_INLINE void for_patches_with_keys(const PseudoLabelsUpsampledArguments& a, const double* weights,
                                             std::int64_t slice, std::int64_t channel, std::int32_t begin,
                                             std::uint32_t end, float* scratch, const Body& body) {
  const CellGrid& grid = a.grid;
  const Logit* logits = logits_of<Logit>(a, slice, channel);
  const float from = score_of(begin);
  const float below = end <= kInfinity - 1 ? score_of(static_cast<std::int32_t>(end)) : __builtin_nanf("");
  float *lowest = scratch, *highest = lowest + grid.pitch();
  float* pairs = highest + grid.pitch();  // [2, pitch]
  std::uint8_t labels[kPatchPixels + kPatchMultiple];
  std::int32_t keys[kPatchPixels + kPatchMultiple];
  start_pairs(logits, grid, 0, pairs);
  for (std::int64_t cell_row = 0; cell_row < grid.cell_rows(); ++cell_row) {
    for_corner_ranges(logits + row_below(grid, cell_row) * grid.low_width, grid, pairs,
                      [&](std::int64_t cell, Floats low, Floats high) {
                        store(lowest + cell, low);
                        store(highest + cell, high);
                      });
    for (std::int64_t cell = 0; cell < grid.cells(); ++cell) {
      if (!(highest[cell] >= from) || lowest[cell] >= below) continue;
      const PatchWindow window = patch_window(grid, cell_row, cell);
      load_labels(a, slice, window, labels);
      patch_keys(grid, weights, corners_of(logits, grid, cell_row, cell), labels, keys);
      body(window, keys);
    }
  }
}

template <typename Logit>
SMILE_FAST_INLINE void count_keys(const PseudoLabelsUpsampledArguments& a, const double* weights, std::int64_t slice,
                                  std::int64_t channel, const KeyBins& bins, float* scratch, std::uint32_t* histogram) {
  const std::uint32_t pixels = a.grid.pixels();
  const auto end = static_cast<std::uint32_t>(bins.key) + (static_cast<std::uint32_t>(bins.bins) << bins.shift);
  for_patches_with_keys<Logit>(
      a, weights, slice, channel, bins.key, end, scratch, [&](const PatchWindow&, const std::int32_t* keys) {
        for (std::uint32_t pixel = 0; pixel < pixels; ++pixel) {
          const std::uint32_t bin = static_cast<std::uint32_t>(keys[pixel] - bins.key) >> bins.shift;
          const auto last = static_cast<std::uint32_t>(bins.bins);
          ++histogram[bin < last ? bin : last];
        }
      });
}

template <typename Logit>
SMILE_FAST_INLINE std::int64_t* find_key(const PseudoLabelsUpsampledArguments& a, const double* weights,
                                         std::int64_t slice, std::int64_t channel, std::int32_t key, float* scratch,
                                         std::int64_t* places) {
  const CellGrid& grid = a.grid;
  for_patches_with_keys<Logit>(a, weights, slice, channel, key, static_cast<std::uint32_t>(key) + 1, scratch,
                               [&](const PatchWindow& window, const std::int32_t* keys) {
                                 for_rows_of(window, grid,
                                             [&](std::int64_t place, std::int64_t pixel, std::int64_t length) {
                                               for (std::int64_t i = 0; i < length; ++i)
                                                 if (keys[pixel + i] == key) *places++ = place + i;
                                             });
                               });
  return places;
}

// One cell of the overlay: what its organs select, each voxel by the highest of their keys, then by the lowest organ.
struct PatchOverlay {
  std::int32_t best[kPatchPixels + kPatchMultiple];
  std::uint8_t labels[kPatchPixels + kPatchMultiple];

  SMILE_FAST_INLINE void clear(std::uint32_t pixels) {
    for (std::uint32_t pixel = 0; pixel < pixels; ++pixel) best[pixel] = kNone;
    memset(labels, 0, pixels);
  }

  SMILE_FAST_INLINE void select(const std::int32_t* keys, std::int64_t begin, std::int64_t end, std::int32_t above,
                                std::uint8_t label) {
    for (std::int64_t pixel = begin; pixel < end; ++pixel) {
      const bool wins = (keys[pixel] > above) & (keys[pixel] > best[pixel]);
      best[pixel] = wins ? keys[pixel] : best[pixel];
      labels[pixel] = wins ? label : labels[pixel];
    }
  }
};

// One organ's selection in one cell.
SMILE_FAST_INLINE void select_by_cut(const CellGrid& grid, const PatchWindow& window, const std::int32_t* keys,
                                     const Cut& cut, std::uint8_t label, PatchOverlay& overlay) {
  // Voxels that are no candidates must not count as tied with an empty cut's key.
  const std::int64_t voxels = grid.high_height * grid.high_width;
  if (cut.end == 0 || cut.end == voxels) {
    overlay.select(keys, 0, grid.pixels(), cut.end == 0 ? cut.key : cut.key - 1, label);
    return;
  }
  for_rows_of(window, grid, [&](std::int64_t place, std::int64_t pixel, std::int64_t length) {
    const std::int64_t tied = larger(smaller(cut.end - place, length), 0);  // voxels of the row before the cut's end
    overlay.select(keys, pixel, pixel + tied, cut.key - 1, label);
    overlay.select(keys, pixel + tied, pixel + length, cut.key, label);
  });
}

// Write one cell of the overlay. highest: of the cell's corners, [organ_count] with steps of `pitch`.
template <typename Logit>
SMILE_FAST_INLINE void overlay_cell(const PseudoLabelsUpsampledArguments& a, const double* weights, std::int64_t slice,
                                    std::int64_t cell_row, std::int64_t cell, const Cut* cuts, const float* highest,
                                    std::int64_t* kept) {
  const CellGrid& grid = a.grid;
  const PatchWindow window = patch_window(grid, cell_row, cell);
  std::uint8_t labels[kPatchPixels + kPatchMultiple];
  std::int32_t keys[kPatchPixels + kPatchMultiple];
  PatchOverlay overlay;
  load_labels(a, slice, window, labels);
  overlay.clear(grid.pixels());
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ) {
    if (!(highest[organ * grid.pitch()] >= score_of(cuts[organ].key))) continue;
    const Logit* logits = logits_of<Logit>(a, slice, a.organs[organ]);
    patch_keys(grid, weights, corners_of(logits, grid, cell_row, cell), labels, keys);
    // The position among the organs for now: it counts, and becomes a label below.
    select_by_cut(grid, window, keys, cuts[organ], static_cast<std::uint8_t>(organ + 1), overlay);
  }
  for (std::uint32_t pixel = 0; pixel < grid.pixels(); ++pixel) {
    const std::uint8_t organ = overlay.labels[pixel];
    if (organ == 0) continue;
    ++kept[organ - 1];
    overlay.labels[pixel] = static_cast<std::uint8_t>(kPseudoBit | (a.organs[organ - 1] + 1));
  }
  std::uint8_t* image = a.overlay + slice * grid.high_height * grid.high_width;
  for_rows_of(window, grid, [&](std::int64_t to, std::int64_t from, std::int64_t length) {
    copy_row(image + to, overlay.labels + from, length);
  });
}

template <typename Logit>
SMILE_FAST_INLINE void overlay_slice(const PseudoLabelsUpsampledArguments& a, const double* weights, std::int64_t slice,
                                     const Cut* cuts, float* scratch, std::int64_t* kept) {
  const CellGrid& grid = a.grid;
  const std::int64_t pitch = grid.pitch();
  float* wanted = scratch;  // [pitch] 1 where the cuts leave voxels of any organ
  float *highest = wanted + pitch, *pairs = highest + a.organ_count * pitch;  // [organ_count, (2,) pitch]
  memset(a.overlay + slice * grid.high_height * grid.high_width, 0,
         static_cast<std::size_t>(grid.high_height * grid.high_width));
  for (std::int64_t organ = 0; organ < a.organ_count; ++organ)
    start_pairs(logits_of<Logit>(a, slice, a.organs[organ]), grid, 0, pairs + 2 * organ * pitch);
  for (std::int64_t cell_row = 0; cell_row < grid.cell_rows(); ++cell_row) {
    for (std::int64_t cell = 0; cell < grid.cells(); cell += kLanes) store(wanted + cell, Floats{});
    for (std::int64_t organ = 0; organ < a.organ_count; ++organ) {
      const Logit* logits = logits_of<Logit>(a, slice, a.organs[organ]);
      const Floats cut = splat(score_of(cuts[organ].key));
      for_corner_ranges(logits + row_below(grid, cell_row) * grid.low_width, grid, pairs + 2 * organ * pitch,
                        [&](std::int64_t cell, Floats, Floats high) {
                          store(highest + organ * pitch + cell, high);
                          store(wanted + cell, high >= cut ? splat(1.0f) : load(wanted + cell));
                        });
    }
    for (std::int64_t cell = 0; cell < grid.cells(); ++cell)
      if (wanted[cell] != 0.0f) overlay_cell<Logit>(a, weights, slice, cell_row, cell, cuts, highest + cell, kept);
  }
}

}  // namespace

void count_keys_kernel(const PseudoLabelsUpsampledArguments& a, const double* weights, std::int64_t slice,
                       std::int64_t channel, const KeyBins& bins, float* scratch, std::uint32_t* histogram) {
  switch (a.dtype) {
    case DType::float32:
      return count_keys<float>(a, weights, slice, channel, bins, scratch, histogram);
    case DType::bfloat16:
      return count_keys<BFloat16>(a, weights, slice, channel, bins, scratch, histogram);
    case DType::float16:
      return count_keys<Float16>(a, weights, slice, channel, bins, scratch, histogram);
  }
}

std::int64_t* find_key_kernel(const PseudoLabelsUpsampledArguments& a, const double* weights, std::int64_t slice,
                              std::int64_t channel, std::int32_t key, float* scratch, std::int64_t* places) {
  switch (a.dtype) {
    case DType::float32:
      return find_key<float>(a, weights, slice, channel, key, scratch, places);
    case DType::bfloat16:
      return find_key<BFloat16>(a, weights, slice, channel, key, scratch, places);
    case DType::float16:
      return find_key<Float16>(a, weights, slice, channel, key, scratch, places);
  }
  return places;
}

void overlay_kernel(const PseudoLabelsUpsampledArguments& a, const double* weights, std::int64_t slice, const Cut* cuts,
                    float* scratch, std::int64_t* kept) {
  switch (a.dtype) {
    case DType::float32:
      return overlay_slice<float>(a, weights, slice, cuts, scratch, kept);
    case DType::bfloat16:
      return overlay_slice<BFloat16>(a, weights, slice, cuts, scratch, kept);
    case DType::float16:
      return overlay_slice<Float16>(a, weights, slice, cuts, scratch, kept);
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
