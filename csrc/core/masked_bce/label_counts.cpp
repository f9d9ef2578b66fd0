#include "core/masked_bce/label_counts.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "core/common/parallel.h"

namespace smile_fast {
namespace {

constexpr std::int64_t kBlock = 1 << 16;  // voxels of one work item

using Histogram = std::array<std::int64_t, kLabelValues>;

// Label maps are mostly runs of one value: eight voxels at a time, and sixty-four where eight of those are equal.
void count_labels(const std::uint8_t* labels, std::int64_t length, Histogram& histogram) {
  std::int64_t i = 0;
  for (; i + 64 <= length; i += 64) {
    const std::uint64_t repeated = labels[i] * 0x0101010101010101ull;
    std::uint64_t words[8], differing = 0;
    std::memcpy(words, labels + i, sizeof words);
    for (const std::uint64_t word : words) differing |= word ^ repeated;
    if (differing == 0) {
      histogram[labels[i]] += 64;
    } else {
      for (int j = 0; j < 64; ++j) ++histogram[labels[i + j]];
    }
  }
  for (; i < length; ++i) ++histogram[labels[i]];
}

}  // namespace

void count_known(const std::uint8_t* labels, const std::uint32_t* table, std::int64_t batch, std::int64_t organs,
                 std::int64_t voxels, std::int64_t* counts, int threads) {
  const std::int64_t blocks = (voxels + kBlock - 1) / kBlock;  // of one image
  std::vector<Histogram> histograms(static_cast<std::size_t>(batch * blocks), Histogram{});
  parallel_for(batch * blocks, threads, [&](std::int64_t item) {
    const std::int64_t begin = item % blocks * kBlock;
    count_labels(labels + item / blocks * voxels + begin, std::min(kBlock, voxels - begin), histograms[item]);
  });

  const std::int64_t words = (organs + kWordBits - 1) / kWordBits;
  std::fill_n(counts, batch * organs, 0);
  for (std::int64_t image = 0; image < batch; ++image) {
    Histogram labels_of_image{};
    for (std::int64_t block = 0; block < blocks; ++block)
      for (std::int64_t label = 0; label < kLabelValues; ++label)
        labels_of_image[label] += histograms[image * blocks + block][label];
    for (std::int64_t label = 0; label < kLabelValues; ++label) {
      if (labels_of_image[label] == 0) continue;
      const std::uint32_t* known = table + ((image * kLabelValues + label) * 2) * words;
      for (std::int64_t organ = 0; organ < organs; ++organ)
        if (known[organ / kWordBits] >> (organ % kWordBits) & 1)
          counts[image * organs + organ] += labels_of_image[label];
    }
  }
}

}  // namespace smile_fast
