// Vectors over the cells of core/upsampled_labels/cell_grid.h: what their corners say of all their pixels, and every
// pixel's value. For *_kernel.cpp files, see core/common/cpu_capability.h.
#pragma once

#include "core/common/simd.h"
#include "core/upsampled_labels/cell_grid.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {

SMILE_FAST_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The low row above a row of cells, and the one below.
SMILE_FAST_INLINE std::int64_t row_above(std::int64_t cell_row) { return larger(cell_row - 1, 0); }
SMILE_FAST_INLINE std::int64_t row_below(const CellGrid& grid, std::int64_t cell_row) {
  return smaller(cell_row, grid.low_height - 1);
}

// kLanes elements of a low row, as float32; behind its end, the last one repeats.
template <typename Logit>
SMILE_FAST_INLINE Floats load_columns(const Logit* row, std::int64_t columns, std::int64_t column) {
  if (column + kLanes <= columns) return load(row + column);
  Floats value = splat(to_float(row[columns - 1]));
  for (int lane = 0; column + lane < columns; ++lane) value[lane] = to_float(row[column + lane]);
  return value;
}

// `next`, moved by one lane: the last lane of `previous` comes first.
SMILE_FAST_INLINE Floats shifted(Floats previous, Floats next) {
#if SMILE_FAST_LANES == 16
  return __builtin_shufflevector(previous, next, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
#elif SMILE_FAST_LANES == 8
  return __builtin_shufflevector(previous, next, 7, 8, 9, 10, 11, 12, 13, 14);
#else
  static_assert(kLanes == 4);
  return __builtin_shufflevector(previous, next, 3, 4, 5, 6);
#endif
}

// Call body(cell, lowest, highest corner) for vectors of the cells of a row, whose low row below is given. `pairs`,
// [2, pitch], holds the lower and the higher one of all neighbours in the row above; afterwards, of the row below.
// A pair that is not finite is -inf and inf: infinite corners can make a NaN, of which a range knows nothing.
template <typename Logit, typename Body>
SMILE_FAST_INLINE void for_corner_ranges(const Logit* below, const CellGrid& grid, float* pairs, const Body& body) {
  const Floats infinite = splat(__builtin_inff());
  Floats previous = splat(to_float(below[0]));
  for (std::int64_t cell = 0; cell < grid.cells(); cell += kLanes, pairs += kLanes) {
    const Floats right = load_columns(below, grid.low_width, cell), left = shifted(previous, right);
    previous = right;
    const Integers finite = left * 0.0f + right * 0.0f == 0.0f;
    const Floats low = finite ? (left < right ? left : right) : -infinite;
    const Floats high = finite ? (left > right ? left : right) : infinite;
    const Floats low_above = load(pairs), high_above = load(pairs + grid.pitch());
    store(pairs, low);
    store(pairs + grid.pitch(), high);
    body(cell, low < low_above ? low : low_above, high > high_above ? high : high_above);
  }
}

// Make `pairs` those of the low row above a row of cells.
template <typename Logit>
SMILE_FAST_INLINE void start_pairs(const Logit* logits, const CellGrid& grid, std::int64_t cell_row, float* pairs) {
  memset(pairs, 0, static_cast<std::size_t>(2 * grid.pitch()) * sizeof(float));
  for_corner_ranges(logits + row_above(cell_row) * grid.low_width, grid, pairs, [](std::int64_t, Floats, Floats) {});
}

// The four corners of a cell of a channel, in the order of corner_weights.
struct Corners {
  double values[4];
};

template <typename Logit>
SMILE_FAST_INLINE Corners corners_of(const Logit* logits, const CellGrid& grid, std::int64_t cell_row,
                                     std::int64_t cell) {
  const Logit* top = logits + row_above(cell_row) * grid.low_width;
  const Logit* bottom = logits + row_below(grid, cell_row) * grid.low_width;
  const std::int64_t left = larger(cell - 1, 0), right = smaller(cell, grid.low_width - 1);
  return {to_float(top[left]), to_float(top[right]), to_float(bottom[left]), to_float(bottom[right])};
}

// The interpolated value, times (2 stride)^2, of kDoubles pixels of a patch. The order of the sum is a promise.
SMILE_FAST_INLINE Doubles interpolate(const double* weights, std::int64_t patch, const Corners& corners) {
  Doubles value = load_as<Doubles>(weights) * corners.values[0];
  value += load_as<Doubles>(weights + patch) * corners.values[1];
  value += load_as<Doubles>(weights + 2 * patch) * corners.values[2];
  value += load_as<Doubles>(weights + 3 * patch) * corners.values[3];
  return value;
}

// The part of a patch that lies in the image.
struct PatchWindow {
  std::int64_t first_row, first_column;         // of the patch; may be negative
  std::int64_t row_begin, row_end, begin, end;  // of the image; empty where begin >= end
};

SMILE_FAST_INLINE PatchWindow patch_window(const CellGrid& grid, std::int64_t cell_row, std::int64_t cell) {
  const std::int64_t row = grid.first_pixel(cell_row), column = grid.first_pixel(cell);
  return {row,
          column,
          larger(row, 0),
          smaller(row + grid.stride, grid.high_height),
          larger(column, 0),
          smaller(column + grid.stride, grid.high_width)};
}

// Call body(image offset, patch offset, length) for every row of a patch that lies in the image.
template <typename Body>
SMILE_FAST_INLINE void for_rows_of(const PatchWindow& window, const CellGrid& grid, const Body& body) {
  if (window.begin >= window.end) return;
  for (std::int64_t row = window.row_begin; row < window.row_end; ++row)
    body(row * grid.high_width + window.begin,
         (row - window.first_row) * grid.stride + window.begin - window.first_column, window.end - window.begin);
}

// memcpy of a row of a patch: usually 8 or 16 bytes, which need no call.
SMILE_FAST_INLINE void copy_row(std::uint8_t* to, const std::uint8_t* from, std::int64_t length) {
  if (length == 8) {
    memcpy(to, from, 8);
  } else if (length == 16) {
    memcpy(to, from, 16);
  } else {
    memcpy(to, from, static_cast<std::size_t>(length));
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
