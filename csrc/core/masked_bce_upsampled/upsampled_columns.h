// The horizontal interpolation of masked_bce_upsampled, worked out once for all rows.
//
// Output columns are taken in tiles. Forward, a column knows the two low-resolution columns that it reads. Backward,
// a low-resolution column knows the columns of a tile that read it: its gradient is a sum of products, in an order
// that nothing but the sizes decides.
#pragma once

#include <cstdint>
#include <vector>

namespace smile_fast {

constexpr int kTileColumns = 128;
constexpr int kWeightsAtOnce = 16;  // the vector width of every capability divides it

// The columns [first, first + kWeightsAtOnce * blocks) of a tile hold all that read one low-resolution column.
struct LowColumn {
  std::int32_t first;
  std::int32_t blocks;
  std::int64_t weights;  // where its weights begin; 0 for a column that does not read it
};

// The low-resolution columns [low_begin, low_end) are all that a tile reads; theirs are the entries from `entries` on.
struct ColumnTile {
  std::int64_t low_begin, low_end;
  std::int64_t entries;
};

// What the kernels see of UpsampledColumns.
struct ColumnTables {
  const std::int32_t* low;   // [width, padded with its last value to whole tiles]
  const std::int32_t* next;  // the same
  const float* weight;       // the same
  const ColumnTile* tiles;
  const LowColumn* low_columns;
  const float* weights;
};

class UpsampledColumns {
 public:
  UpsampledColumns(std::int64_t low_width, std::int64_t high_width);
  ColumnTables tables() const;

 private:
  void add_tile(std::int64_t begin, std::int64_t end);
  void add_low_column(std::int64_t low_column, std::int64_t begin, std::int64_t end);

  std::vector<std::int32_t> low_, next_;
  std::vector<float> weight_;
  std::vector<ColumnTile> tiles_;
  std::vector<LowColumn> low_columns_;
  std::vector<float> weights_;
};

}  // namespace smile_fast
