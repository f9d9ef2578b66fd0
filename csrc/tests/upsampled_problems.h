// What the tests of the upsampled label maps share: logits that provoke, and the definition of a pixel's value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/upsampled_labels/cell_grid.h"
#include "kernels.h"

namespace smile_fast::testing {

enum class Logits { noise, blobs, ties, special, constant };
constexpr Logits kAllLogits[] = {Logits::noise, Logits::blobs, Logits::ties, Logits::special, Logits::constant};

template <typename Logit>
std::vector<Logit> make_logits(std::int64_t images, std::int64_t channels, const CellGrid& grid, Logits kind) {
  std::mt19937 random(static_cast<std::uint32_t>(channels * 1000003 + grid.high_height * 7 + static_cast<int>(kind)));
  std::normal_distribution<float> normal(0.0f, 3.0f);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<Logit> logits;
  for (std::int64_t channel = 0; channel < images * channels; ++channel) {
    const auto y0 = static_cast<float>(random() % 8), x0 = static_cast<float>(random() % 8);
    for (std::int64_t y = 0; y < grid.low_height; ++y) {
      for (std::int64_t x = 0; x < grid.low_width; ++x) {
        float value = normal(random);
        if (kind == Logits::blobs)
          value = 4.0f - 2.0f * std::hypot(static_cast<float>(y) - y0, static_cast<float>(x) - x0);
        if (kind == Logits::ties) value = std::round(value / 2.0f);
        if (kind == Logits::special && random() % 8 == 0) value = random() % 3 == 0 ? nan : random() % 2 ? inf : -inf;
        if (kind == Logits::constant) value = static_cast<float>(channel % 3) - 0.5f;
        logits.push_back(from_float<Logit>(value));
      }
    }
  }
  return logits;
}

// The interpolated logit at a pixel, times (2 stride)^2: from the position of the pixel, in the order of the
// definition.
template <typename Logit>
double value_at(const Logit* logits, const CellGrid& grid, std::int64_t y, std::int64_t x) {
  struct Axis {
    std::int64_t lower, upper;
    double weight;
  };
  const auto axis = [&](std::int64_t pixel, std::int64_t count) {
    const std::int64_t doubled = 2 * pixel + 1 - grid.stride, cell = 2 * grid.stride;
    const std::int64_t lower = doubled < 0 ? -1 : doubled / cell;
    return Axis{std::max<std::int64_t>(lower, 0), std::min(lower + 1, count - 1),
                static_cast<double>(doubled - lower * cell)};
  };
  const Axis v = axis(y, grid.low_height), h = axis(x, grid.low_width);
  const auto logit = [&](std::int64_t row, std::int64_t column) {
    return static_cast<double>(to_float(logits[row * grid.low_width + column]));
  };
  const double whole = 2.0 * grid.stride;
  double value = (whole - v.weight) * (whole - h.weight) * logit(v.lower, h.lower);
  value += (whole - v.weight) * h.weight * logit(v.lower, h.upper);
  value += v.weight * (whole - h.weight) * logit(v.upper, h.lower);
  value += v.weight * h.weight * logit(v.upper, h.upper);
  return value;
}

inline std::string name_of(std::int64_t images, std::int64_t channels, const CellGrid& grid, DType dtype, Logits kind) {
  return std::to_string(images) + " x " + std::to_string(channels) + " x " + std::to_string(grid.high_height) + " x " +
         std::to_string(grid.high_width) + ", stride " + std::to_string(grid.stride) + ", dtype " +
         std::to_string(static_cast<int>(dtype)) + ", logits " + std::to_string(static_cast<int>(kind));
}

}  // namespace smile_fast::testing
