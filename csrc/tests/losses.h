// What the tests of the losses share: random supervision, exact results, and the distance to them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/common/float_formats.h"
#include "core/masked_bce/label_counts.h"

namespace smile_fast::testing {

enum class Labels { uniform, runs, noise };

// Supervision of random bits: a third of the organs are never known, so that their logits are skipped; a third are
// known everywhere and never positive.
struct Supervision {
  std::int64_t batch, organs, voxels, words;
  std::vector<std::uint8_t> labels;
  std::vector<std::uint32_t> table;

  Supervision(std::int64_t batch, std::int64_t organs, std::int64_t voxels, Labels pattern, std::mt19937& random)
      : batch(batch), organs(organs), voxels(voxels), words((organs + kWordBits - 1) / kWordBits) {
    std::uint8_t label = 0;
    for (std::int64_t i = 0; i < batch * voxels; ++i) {
      if (pattern == Labels::noise || (pattern == Labels::runs && random() % 97 == 0))
        label = static_cast<std::uint8_t>(random());
      labels.push_back(label);
    }
    for (std::int64_t row = 0; row < batch * kLabelValues; ++row) {
      for (int which : {0, 1}) {
        for (std::int64_t word = 0; word < words; ++word) {
          std::uint32_t bits = static_cast<std::uint32_t>(random());
          for (int organ = 0; organ < kWordBits; ++organ) {
            if (organ % 3 == 0) bits &= ~(1u << organ);
            if (organ % 3 == 1) bits = which == 0 ? bits | 1u << organ : bits & ~(1u << organ);
          }
          table.push_back(bits);
        }
      }
    }
  }

  bool bit(std::int64_t image, std::int64_t voxel, int which, std::int64_t organ) const {
    const std::int64_t row = image * kLabelValues + labels[image * voxels + voxel];
    return table[(row * 2 + which) * words + organ / kWordBits] >> (organ % kWordBits) & 1;
  }
};

// BCE and its derivative in double precision.
struct Exact {
  double loss, slope;
};
inline Exact exact_bce(double z, bool positive) {
  const double x = positive ? -z : z;
  const double slope = x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
  return {std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))), positive ? -slope : slope};
}

// The largest relative error of a sum of losses: the goal, 1e-7. A voxel's own error is up to 8 roundings of float32
// (4 of them the fast exponential's of 16-bit logits), which do not average out over a handful of voxels.
inline double loss_relative(std::int64_t known) { return known >= 16 ? 1e-7 : 8 * 0x1p-24; }

// Distance of a gradient from the exact one, in units in the last place of its format.
inline double ulps(float computed, double exact) {
  const float nearest = std::abs(static_cast<float>(exact));
  const double ulp = static_cast<double>(std::nextafter(nearest, 2.0f)) - static_cast<double>(nearest);
  return std::abs(computed - exact) / ulp;
}
inline double ulps(BFloat16 computed, double exact) {
  return std::abs(computed.bits - from_float<BFloat16>(static_cast<float>(exact)).bits);
}
inline double ulps(Float16 computed, double exact) {
  return std::abs(computed.bits - from_float<Float16>(static_cast<float>(exact)).bits);
}

}  // namespace smile_fast::testing
