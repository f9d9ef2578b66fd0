// What the tests of masked_bce share, on the CPU and on the emulated GPU: a problem, and the checks of its results.
#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include "check.h"
#include "core/masked_bce/masked_bce.h"
#include "kernels.h"
#include "losses.h"

namespace smile_fast::testing {

template <typename Logit>
constexpr double kAllowedUlps = 1.0;  // a correctly rounded float32 result may still fall on the other side of a tie
template <>
inline constexpr double kAllowedUlps<float> = 4.0;

template <typename Logit>
constexpr double kScaledRelative = 0x1p-7;  // two roundings to bfloat16, or one and a half to float16
template <>
inline constexpr double kScaledRelative<float> = 0x1p-22;

struct Results {
  Guarded<double> sums;
  Guarded<std::int64_t> counts;
  Guarded<float> loss;
  explicit Results(std::int64_t channels) : sums(channels), counts(channels), loss(1) {}
  bool same_sums(const Results& other) const { return sums == other.sums && counts == other.counts; }
  bool operator==(const Results& other) const { return same_sums(other) && loss == other.loss; }
};

template <typename Logit>
struct Case {
  Supervision supervision;
  Guarded<Logit> logits;
  std::string name;
  std::int64_t offset;

  Case(std::int64_t batch, std::int64_t organs, std::int64_t voxels, Labels pattern, std::int64_t offset,
       std::mt19937& random)
      : supervision(batch, organs, voxels, pattern, random),
        logits(batch * organs * voxels, offset),
        name(std::to_string(batch) + " x " + std::to_string(organs) + " x " + std::to_string(voxels) + ", dtype " +
             std::to_string(static_cast<int>(dtype_of<Logit>)) + ", labels " +
             std::to_string(static_cast<int>(pattern)) + ", offset " + std::to_string(offset)),
        offset(offset) {
    std::normal_distribution<float> normal(0.0f, 6.0f);
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    for (std::int64_t i = 0; i < logits.size(); ++i) {
      const std::int64_t channel = i / voxels, voxel = i % voxels;
      const bool known = supervision.bit(channel / organs, voxel, 0, channel % organs);
      const float poison = voxel % 3 == 0 ? 1.0f : voxel % 3 == 1 ? nan : -inf;  // under w = 0
      const float extreme = voxel % 101 == 5 ? 15.0f : 1.0f;                     // down to denormal gradients
      logits[i] = from_float<Logit>(known ? normal(random) * extreme : poison);
    }
  }

  MaskedBceArguments arguments(Results& results, void* gradient) const {
    const Supervision& s = supervision;
    return {dtype_of<Logit>, logits.data(),       s.labels.data(),       s.table.data(), s.batch, s.organs,
            s.voxels,        results.sums.data(), results.counts.data(), gradient,       false,   results.loss.data()};
  }
};

// The loss against the sums that it is made of.
inline void check_loss(const Results& results, bool mean, const std::string& name) {
  double total = 0.0, known = 0.0;
  for (const double sum : results.sums) total += sum;
  for (const std::int64_t count : results.counts) known += static_cast<double>(count);
  const double exact = mean ? total / std::max(known, 1.0) : total;
  check(std::abs(results.loss[0] - exact) <= 0x1.01p-24 * exact + 0x1p-149, name + ": loss");
}

template <typename Logit>
void check_against_double(const Case<Logit>& c, const Results& results, const Guarded<Logit>& gradient) {
  const Supervision& s = c.supervision;
  double worst = 0.0;
  for (std::int64_t channel = 0; channel < s.batch * s.organs; ++channel) {
    double sum = 0.0;
    std::int64_t count = 0;
    for (std::int64_t voxel = 0; voxel < s.voxels; ++voxel) {
      const bool known = s.bit(channel / s.organs, voxel, 0, channel % s.organs);
      const bool positive = s.bit(channel / s.organs, voxel, 1, channel % s.organs);
      const Exact exact = exact_bce(to_float(c.logits[channel * s.voxels + voxel]), positive);
      sum += known ? exact.loss : 0.0;
      count += known;
      worst = worse(worst, ulps(gradient[channel * s.voxels + voxel], known ? exact.slope : 0.0));
    }
    check(std::abs(results.sums[channel] - sum) <= loss_relative(count) * sum,
          c.name + ": sum of channel " + std::to_string(channel));
    check(results.counts[channel] == count, c.name + ": count of channel " + std::to_string(channel));
  }
  check(worst <= kAllowedUlps<Logit>, c.name + ": gradient, ulps " + std::to_string(worst));
  check_loss(results, false, c.name);
  check(results.sums.canaries_live() && results.loss.canaries_live() && results.counts.canaries_live() &&
            gradient.canaries_live() && c.logits.canaries_live(),
        c.name + ": canaries");
}

// In place, and divided by the number of known pairs: the same sums, a scaled loss, a scaled gradient but in float16.
// `run` takes the arguments.
template <typename Logit, typename Run>
void check_mean_in_place(const Case<Logit>& c, const Results& results, const Guarded<Logit>& gradient, const Run& run) {
  Guarded<Logit> overwritten = c.logits;
  Results mean(results.sums.size());
  MaskedBceArguments arguments = c.arguments(mean, overwritten.data());
  arguments.logits = overwritten.data();
  arguments.mean = true;
  run(arguments);
  check(mean.same_sums(results), c.name + ": mean, sums");
  check_loss(mean, true, c.name + ": mean");
  double known = 0.0, worst = 0.0;
  if (dtype_of<Logit> != DType::float16)
    for (const std::int64_t count : mean.counts) known += static_cast<double>(count);
  for (std::int64_t i = 0; i < gradient.size(); ++i) {
    const double whole = to_float(gradient[i]) / std::max(known, 1.0);
    worst = worse(worst, std::abs(to_float(overwritten[i]) - whole) - kScaledRelative<Logit> * std::abs(whole));
  }
  check(worst <= 0x1p-126, c.name + ": mean, gradient in place, " + std::to_string(worst * known));
  check(overwritten.canaries_live(), c.name + ": canaries in place");
}

}  // namespace smile_fast::testing
