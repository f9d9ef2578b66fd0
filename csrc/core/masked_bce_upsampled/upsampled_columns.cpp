#include "core/masked_bce_upsampled/upsampled_columns.h"

#include <algorithm>

#include "core/masked_bce_upsampled/interpolation.h"

namespace smile_fast {

UpsampledColumns::UpsampledColumns(std::int64_t low_width, std::int64_t high_width) {
  const std::int64_t tiles = (high_width + kTileColumns - 1) / kTileColumns;
  for (std::int64_t column = 0; column < tiles * kTileColumns; ++column) {
    const Source source = source_of(std::min(column, high_width - 1), low_width, high_width);
    low_.push_back(static_cast<std::int32_t>(source.low));
    next_.push_back(static_cast<std::int32_t>(source.next));
    weight_.push_back(source.weight);
  }
  for (std::int64_t tile = 0; tile < tiles; ++tile)
    add_tile(tile * kTileColumns, std::min((tile + 1) * kTileColumns, high_width));
}

void UpsampledColumns::add_tile(std::int64_t begin, std::int64_t end) {
  const ColumnTile tile{low_[begin], next_[end - 1] + 1, static_cast<std::int64_t>(low_columns_.size())};
  for (std::int64_t column = tile.low_begin; column < tile.low_end; ++column) add_low_column(column, begin, end);
  tiles_.push_back(tile);
}

void UpsampledColumns::add_low_column(std::int64_t low_column, std::int64_t begin, std::int64_t end) {
  // Columns read non-decreasing sources: those that read this one stand together.
  const auto reads_it = [&](std::int64_t column) { return low_[column] == low_column || next_[column] == low_column; };
  std::int64_t first = std::lower_bound(next_.begin() + begin, next_.begin() + end, low_column) - next_.begin();
  std::int64_t last = first;
  while (last < end && reads_it(last)) ++last;
  const std::int64_t blocks = (last - first + kWeightsAtOnce - 1) / kWeightsAtOnce;
  low_columns_.push_back({static_cast<std::int32_t>(first - begin), static_cast<std::int32_t>(blocks),
                          static_cast<std::int64_t>(weights_.size())});
  for (std::int64_t column = first; column < last; ++column) {
    const float of_low = low_[column] == low_column ? 1.0f - weight_[column] : 0.0f;
    const float of_next = next_[column] == low_column ? weight_[column] : 0.0f;
    weights_.push_back(of_low + of_next);  // 1 where both are the same column
  }
  weights_.resize(weights_.size() + blocks * kWeightsAtOnce - (last - first));
}

ColumnTables UpsampledColumns::tables() const {
  return {low_.data(), next_.data(), weight_.data(), tiles_.data(), low_columns_.data(), weights_.data()};
}

}  // namespace smile_fast
