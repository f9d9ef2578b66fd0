// scale_gradient against a loop, on the CPU and on the emulated GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "core/masked_bce/scale_gradient.h"
#include "kernels.h"

namespace smile_fast::testing {

// A gradient that starts `offset` elements behind an aligned address; every second factor is 1. `run` takes the
// arguments.
template <typename Logit, typename Run>
void test_scale_gradient(std::int64_t channels, std::int64_t voxels, std::int64_t offset, const Run& run) {
  const std::string name = "scale " + std::to_string(channels) + " x " + std::to_string(voxels) + ", dtype " +
                           std::to_string(static_cast<int>(dtype_of<Logit>));
  Guarded<Logit> gradient(channels * voxels, offset);
  std::vector<double> factors;
  for (std::int64_t channel = 0; channel < channels; ++channel)
    factors.push_back(channel % 2 == 0 ? 1.0 + 1e-12 : -0.3 * static_cast<double>(channel));
  for (std::int64_t i = 0; i < gradient.size(); ++i)
    gradient[i] = from_float<Logit>(static_cast<float>(i % 23) - 11.5f);
  const Guarded<Logit> before = gradient;
  run({dtype_of<Logit>, gradient.data(), factors.data(), channels, voxels});
  bool right = true;
  for (std::int64_t i = 0; i < gradient.size(); ++i) {
    const float factor = i / voxels % 2 == 0 ? 1.0f : static_cast<float>(factors[i / voxels]);
    right &= to_float(gradient[i]) == to_float(from_float<Logit>(to_float(before[i]) * factor));
  }
  check(right, name);
  check(gradient.canaries_live(), name + ": canaries");
}

}  // namespace smile_fast::testing
