// How many voxels of each organ are known: a histogram of the labels, then one look at the table.
#pragma once

#include <cstdint>

namespace smile_fast {

constexpr std::int64_t kLabelValues = 256;
constexpr std::int64_t kWordBits = 32;  // organs per word of a supervision table

// counts: [batch, organs], written; labels: [batch, voxels]; table: [batch, 256, 2, ceil(organs / 32)].
void count_known(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t batch, std::int64_t organs,
                 std::int64_t voxels, std::int64_t* counts, int threads);

}  // namespace smile_fast
