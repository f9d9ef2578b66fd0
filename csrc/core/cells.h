// Vectors over the cells of core/cell_grid.h: what their corners say of all their pixels, and every pixel's value.
// For *_block.cpp files, see core/targets.h.
#pragma once

#include "core/cell_grid.h"
#include "core/simd.h"

namespace smile_fast::SMILE_FAST_TARGET {

constexpr int kDoubles = kLanes / 2;  // lanes of a vector of doubles
using Doubles = double __attribute__((vector_size(8 * kDoubles)));
using Longs = std::int64_t __attribute__((vector_size(8 * kDoubles)));

SMILE_FAST_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
SMILE_FAST_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The feature row above a row of cells, and the one below.
SMILE_FAST_INLINE std::int64_t row_above(std::int64_t cell_row) { return larger(cell_row - 1, 0); }
SMILE_FAST_INLINE std::int64_t row_below(const CellGrid& grid, std::int64_t cell_row) {
  return smaller(cell_row, grid.rows - 1);
}

// A feature row as float32, its first and last element repeated on both sides: cell c lies between elements c and
// c + 1. Adds 0 times every element to `doubt`, which turns into NaN if one is not finite.
template <typename Logit>
SMILE_FAST_INLINE void load_row(const Logit* source, const CellGrid& grid, float* row, Floats& doubt) {
  row[0] = to_float(source[0]);
  std::int64_t column = 0;
  for (; column + kLanes <= grid.columns; column += kLanes) {
    const Floats value = load(source + column);
    store(row + 1 + column, value);
    doubt += value * 0.0f;
  }
  for (; column < grid.columns; ++column) {
    row[1 + column] = to_float(source[column]);
    doubt += splat(row[1 + column]) * 0.0f;
  }
  for (++column; column < grid.pitch(); ++column) row[column] = row[grid.columns];
}

// The lowest and the highest corner of every cell of a row, [pitch] each. If any logit of the row is not finite, -inf
// and inf: infinite corners can make a NaN, of which the corners' range knows nothing.
template <typename Logit>
SMILE_FAST_INLINE void corner_range(const Logit* plane, const CellGrid& grid, std::int64_t cell_row, float* top,
                                    float* bottom, float* lowest, float* highest) {
  Floats doubt = {};
  load_row(plane + row_above(cell_row) * grid.columns, grid, top, doubt);
  load_row(plane + row_below(grid, cell_row) * grid.columns, grid, bottom, doubt);
  bool finite = true;
  for (int lane = 0; lane < kLanes; ++lane) finite &= doubt[lane] == 0.0f;
  const Floats infinite = splat(__builtin_inff());
  for (std::int64_t cell = 0; cell < grid.cells(); cell += kLanes) {
    const Floats a = load(top + cell), b = load(top + cell + 1), c = load(bottom + cell), d = load(bottom + cell + 1);
    const Floats low_top = a < b ? a : b, low_bottom = c < d ? c : d;
    const Floats high_top = a > b ? a : b, high_bottom = c > d ? c : d;
    store(lowest + cell, finite ? (low_top < low_bottom ? low_top : low_bottom) : -infinite);
    store(highest + cell, finite ? (high_top > high_bottom ? high_top : high_bottom) : infinite);
  }
}

// The four corners of a cell of a plane, in the order of corner_weights.
struct Corners {
  double values[4];
};

template <typename Logit>
SMILE_FAST_INLINE Corners corners_of(const Logit* plane, const CellGrid& grid, std::int64_t cell_row,
                                     std::int64_t cell) {
  const Logit* top = plane + row_above(cell_row) * grid.columns;
  const Logit* bottom = plane + row_below(grid, cell_row) * grid.columns;
  const std::int64_t left = larger(cell - 1, 0), right = smaller(cell, grid.columns - 1);
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
          smaller(row + grid.stride, grid.height),
          larger(column, 0),
          smaller(column + grid.stride, grid.width)};
}

// Call body(image offset, patch offset, length) for every row of a patch that lies in the image.
template <typename Body>
SMILE_FAST_INLINE void for_rows_of(const PatchWindow& window, const CellGrid& grid, const Body& body) {
  if (window.begin >= window.end) return;
  for (std::int64_t row = window.row_begin; row < window.row_end; ++row)
    body(row * grid.width + window.begin, (row - window.first_row) * grid.stride + window.begin - window.first_column,
         window.end - window.begin);
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

}  // namespace smile_fast::SMILE_FAST_TARGET
