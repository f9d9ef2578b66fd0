// The horizontal half of masked_bce_upsampled: a row of low-resolution logits to a tile's full width, and a row of
// gradients at full width back.
#pragma once

#include "core/masked_bce/bce_bits.h"
#include "core/masked_bce_upsampled/upsampled_columns.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {

static_assert(kWeightsAtOnce % kLanes == 0);

// A tile's gradients at full width. Behind the last column there are zeros, for the reduction.
using GradientRow = float[kTileColumns + kWeightsAtOnce];

// A row of low-resolution logits, or two of neighbouring slices, with their weights; and where its gradient goes.
template <typename Logit>
struct LowRow {
  const Logit* logits[2];
  float* gradient[2];
  float weight[2];
  int slices;
};

template <typename Logit>
SMILE_FAST_INLINE float low_value(const LowRow<Logit>& row, std::int64_t column) {
  const float value = to_float(row.logits[0][column]);
  return row.slices == 1 ? value : value * row.weight[0] + to_float(row.logits[1][column]) * row.weight[1];
}

// The low-resolution columns [begin, end), and up to kLanes more.
template <typename Logit>
SMILE_FAST_INLINE void low_values(const LowRow<Logit>& row, std::int64_t begin, std::int64_t end, std::int64_t width,
                                  float* values) {
  std::int64_t column = begin;
  for (; column < end && column + kLanes <= width; column += kLanes) {
    Floats value = load(row.logits[0] + column);
    if (row.slices == 2) value = value * row.weight[0] + load(row.logits[1] + column) * row.weight[1];
    store(values + (column - begin), value);
  }
  for (; column < end; ++column) values[column - begin] = low_value(row, column);
}

// The tile's columns of a low-resolution row: (1 - weight) of one column and weight of the next.
template <typename Logit>
SMILE_FAST_INLINE void interpolate_columns(const LowRow<Logit>& row, const ColumnTables& columns,
                                           const ColumnTile& tile, std::int64_t first, std::int64_t width, float* low,
                                           float* values) {
  const std::int32_t *lows = columns.low + first, *nexts = columns.next + first;
  const float* weights = columns.weight + first;
  const auto interpolate = [&](int column, Floats low_part, Floats next_part) __attribute__((always_inline)) {
    const Floats weight = load(weights + column);
    store(values + column, in_bits(low_part * (1.0f - weight) + next_part * weight));
  };
  if (tile.low_end - tile.low_begin > kTileColumns) {  // the image shrinks: most low-resolution columns are not read
    for (int column = 0; column < kTileColumns; column += kLanes) {
      Floats low_part, next_part;
      for (int lane = 0; lane < kLanes; ++lane) {
        low_part[lane] = low_value(row, lows[column + lane]);
        next_part[lane] = low_value(row, nexts[column + lane]);
      }
      interpolate(column, low_part, next_part);
    }
    return;
  }
  low_values(row, tile.low_begin, tile.low_end, width, low);
  for (int column = 0; column < kTileColumns; column += kLanes) {
    const std::int32_t base = lows[column];
    const float* read = low + (base - tile.low_begin);
    const Integers low_at = load_as<Integers>(lows + column) - base, next_at = load_as<Integers>(nexts + column) - base;
    Floats low_part, next_part;
    if (nexts[column + kLanes - 1] - base < kLanes) {
      const Floats read_values = load(read);
      low_part = lanes_at(read_values, low_at);
      next_part = lanes_at(read_values, next_at);
    } else {
      for (int lane = 0; lane < kLanes; ++lane) {
        low_part[lane] = read[low_at[lane]];
        next_part[lane] = read[next_at[lane]];
      }
    }
    interpolate(column, low_part, next_part);
  }
}

template <int... lane>
struct Lanes {};
#if SMILE_FAST_LANES == 16
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif SMILE_FAST_LANES == 8
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = Lanes<0, 1, 2, 3>;
#endif

// Sums of neighbouring runs of kHalf lanes: those of a, then those of b.
template <int kHalf, int... lane>
SMILE_FAST_INLINE Floats halves_added(Floats a, Floats b, Lanes<lane...>) {
  return __builtin_shufflevector(a, b, (lane / kHalf * 2 * kHalf + lane % kHalf)...) +
         __builtin_shufflevector(a, b, (lane / kHalf * 2 * kHalf + lane % kHalf + kHalf)...);
}

// The sums of kReduced vectors' lanes, in the first kReduced lanes.
constexpr int kReduced = 4;
SMILE_FAST_INLINE Floats lane_sums(const Floats (&values)[kReduced]) {
  constexpr AllLanes lanes;
  const Floats low = halves_added<kLanes / 2>(values[0], values[1], lanes);
  const Floats high = halves_added<kLanes / 2>(values[2], values[3], lanes);
  Floats sums = halves_added<kLanes / 4>(low, high, lanes);
  if constexpr (kLanes >= 8) sums = halves_added<kLanes / 8>(sums, sums, lanes);
  if constexpr (kLanes >= 16) sums = halves_added<kLanes / 16>(sums, sums, lanes);
  return sums;
}

// What one low-resolution column gets from a row of gradients at full width, lane by lane. kNumbers = false: the row
// may hold a NaN, which must not reach the columns that do not read it, with a weight of 0.
template <bool kNumbers>
SMILE_FAST_INLINE Floats products(const float* gradient, const LowColumn& low, const float* weights) {
  Floats sum = {};
  for (int at = 0; at < low.blocks * kWeightsAtOnce; at += kLanes) {
    const Floats weight = load(weights + low.weights + at);
    Floats value = load(gradient + low.first + at);
    if constexpr (!kNumbers) value = weight != 0.0f ? value : splat(0.0f);
    sum += value * weight;
  }
  return sum;
}

// Adds the first `count` lanes to low-resolution columns.
template <typename Logit>
SMILE_FAST_INLINE void add_gradient(const LowRow<Logit>& row, std::int64_t column, Floats sums, int count) {
  using Reduced = float __attribute__((vector_size(4 * kReduced)));
  for (int slice = 0; slice < row.slices; ++slice) {
    const Floats values = sums * row.weight[slice];
    float* const gradient = row.gradient[slice] + column;
    if (count == kReduced)
      store_as(gradient, load_as<Reduced>(gradient) + load_as<Reduced>(&values));
    else
      for (int i = 0; i < count; ++i) gradient[i] += values[i];
  }
}

// The rows of gradients at full width, added to the low-resolution ones.
template <bool kNumbers, typename Logit>
SMILE_FAST_INLINE void reduce_columns(const GradientRow (&gradient)[2], const ColumnTables& columns,
                                      const ColumnTile& tile, const LowRow<Logit> (&rows)[2]) {
  const LowColumn* low = columns.low_columns + tile.entries;
  for (std::int64_t column = tile.low_begin; column < tile.low_end; column += kReduced, low += kReduced) {
    const int count = static_cast<int>(smaller(kReduced, tile.low_end - column));
    for (int side = 0; side < 2; ++side) {
      Floats values[kReduced];
      for (int i = 0; i < kReduced; ++i)
        values[i] = i < count ? products<kNumbers>(gradient[side], low[i], columns.weights) : splat(0.0f);
      add_gradient(rows[side], column, lane_sums(values), count);
    }
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
