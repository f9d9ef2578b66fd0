// masked_bce on every 16-bit logit and on a dense sample of the float32 ones, or with --all on each of the 2^32, for
// every label and mask and on every capability, against double precision.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "check.h"
#include "core/common/cpu_capability.h"
#include "core/common/float_formats.h"
#include "core/masked_bce/label_counts.h"
#include "core/masked_bce/masked_bce.h"

namespace {

using smile_fast::as_float;
using smile_fast::BFloat16;
using smile_fast::CpuCapability;
using smile_fast::DType;
using smile_fast::Float16;
using smile_fast::from_float;
using smile_fast::kLabelValues;
using smile_fast::to_float;
using smile_fast::testing::check;
using smile_fast::testing::worse;

enum Label : std::uint8_t { negative, positive, unknown, kLabels };

constexpr double kFloatUlps = 4.0;
constexpr double kLossRelative = 1e-7;
constexpr float kLargestSummed = 0x1p121f;  // a lane sums up to 64 losses in float32 before they go to a double

// One organ's table: which labels are known, and which of those are positive.
std::vector<std::uint32_t> table() {
  std::vector<std::uint32_t> rows(kLabelValues * 2);
  rows[2 * negative] = rows[2 * positive] = rows[2 * positive + 1] = rows[2 * unknown + 1] = 1;
  return rows;
}

// d BCE / dz: sigma(z) for y = 0 and sigma(z) - 1 = -sigma(-z) for y = 1.
double exact_gradient(double z, Label label) {
  if (label == unknown) return 0.0;
  return label == positive ? -1.0 / (1.0 + std::exp(z)) : 1.0 / (1.0 + std::exp(-z));
}

double exact_loss(double z, Label label) {
  if (label == unknown) return 0.0;
  const double margin = label == positive ? -z : z;
  return std::fmax(margin, 0.0) + std::log1p(std::exp(-std::fabs(margin)));
}

// How far a gradient is from the exact one, in units in the last place.
double ulps(float computed, double exact) {
  const std::int64_t exponent = static_cast<std::int64_t>(std::bit_cast<std::uint64_t>(exact) >> 52 & 2047) - 1023;
  const std::int64_t last_place = std::max<std::int64_t>(exponent, -126) - 23;
  return std::fabs(computed - exact) * std::bit_cast<double>(static_cast<std::uint64_t>(1023 - last_place) << 52);
}

// The same for a 16-bit gradient, as the number of representable numbers in between.
template <typename Half>
double ulps(Half computed, double exact) {
  const Half nearest = from_float<Half>(static_cast<float>(exact));
  return std::fabs(static_cast<double>(computed.bits) - static_cast<double>(nearest.bits));
}

template <typename Logit>
struct Check {
  DType dtype;
  double allowed_ulps;
  double worst_ulps = 0.0;
  double worst_loss = 0.0;
  std::int64_t leaks = 0;

  void operator()(const std::vector<Logit>& logits, Label label, int threads) {
    const auto size = static_cast<std::int64_t>(logits.size());
    const std::vector<std::uint8_t> labels(logits.size(), label);
    const std::vector<std::uint32_t> rows = table();
    std::vector<Logit> gradient(logits.size());
    double sum = 0.0;
    float loss = 0.0f;
    std::int64_t count = 0;
    smile_fast::masked_bce_cpu(
        {dtype, logits.data(), labels.data(), rows.data(), 1, 1, size, &sum, &count, gradient.data(), false, &loss},
        threads);
    double exact = 0.0;
    bool summed = true;
    for (std::int64_t i = 0; i < size; ++i) {
      const float z = to_float(logits[i]);
      if (label == unknown) {
        leaks += to_float(gradient[i]) != 0.0f;  // also for NaN and Inf
      } else if (std::isfinite(z)) {
        worst_ulps = worse(worst_ulps, ulps(gradient[i], exact_gradient(z, label)));
      }
      exact += exact_loss(z, label);
      summed = summed && std::fabs(z) < kLargestSummed;
    }
    if (label == unknown) leaks += sum != 0.0 || count != 0;
    const double floor = static_cast<double>(size) * 0x1p-148;  // exp(-|z|) cannot be nearer than denormal numbers are
    if (summed && exact > 0.0) worst_loss = worse(worst_loss, (std::fabs(sum - exact) - floor) / exact);
  }

  void finish(const std::string& name) const {
    std::printf("%s: gradient within %.3f ulp, loss within %.2e\n", name.c_str(), worst_ulps, worst_loss);
    check(worst_ulps <= allowed_ulps, name + ": gradient");
    check(worst_loss <= kLossRelative, name + ": loss");
    check(leaks == 0, name + ": a voxel that is not known changed something");
  }
};

constexpr std::int64_t kChunk = 1 << 16;  // logits of one call; neighbours in value, so that no loss hides another

void every_half(const std::string& capability) {
  Check<BFloat16> brain{DType::bfloat16, 1.0};
  Check<Float16> half{DType::float16, 1.0};
  for (const Label label : {negative, positive, unknown}) {
    for (std::uint32_t first = 0; first < 0x10000; first += 0x1000) {
      std::vector<BFloat16> brains;
      std::vector<Float16> halves;
      for (std::uint32_t bits = first; bits < first + 0x1000; ++bits) {
        brains.push_back({static_cast<std::uint16_t>(bits)});
        halves.push_back({static_cast<std::uint16_t>(bits)});
      }
      brain(brains, label, 1);
      half(halves, label, 1);
    }
  }
  brain.finish(capability + ", bfloat16");
  half.finish(capability + ", float16");
}

// Every step-th float32, its sign included.
void floats(const std::string& capability, std::int64_t step, int threads) {
  std::vector<Check<float>> checks(threads, Check<float>{DType::float32, kFloatUlps});
  const std::int64_t chunks = ((std::int64_t{1} << 32) / step + kChunk - 1) / kChunk;
  const auto work = [&](int thread) {
    std::vector<float> logits(kChunk);
    for (std::int64_t chunk = thread; chunk < chunks; chunk += threads) {
      for (std::int64_t i = 0; i < kChunk; ++i)
        logits[i] = as_float(static_cast<std::uint32_t>((chunk * kChunk + i) * step));
      for (const Label label : {negative, positive, unknown}) checks[thread](logits, label, 1);
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int thread = 0; thread < threads; ++thread) helpers.emplace_back(work, thread);
  }
  for (int thread = 1; thread < threads; ++thread) {
    checks[0].worst_ulps = worse(checks[0].worst_ulps, checks[thread].worst_ulps);
    checks[0].worst_loss = worse(checks[0].worst_loss, checks[thread].worst_loss);
    checks[0].leaks += checks[thread].leaks;
  }
  checks[0].finish(capability + ", float32");
}

}  // namespace

int main(int count, char** arguments) {
  const bool all = count == 2 && std::string_view(arguments[1]) == "--all";
  constexpr std::pair<CpuCapability, const char*> capabilities[] = {
      {CpuCapability::plain, "plain"}, {CpuCapability::avx2, "avx2"}, {CpuCapability::avx512, "avx512"}};
  for (const auto& [capability, name] : capabilities) {
    if (!smile_fast::runs(capability)) continue;
    smile_fast::use_cpu_capability(capability);
    every_half(name);
    floats(name, all ? 1 : 997, all ? static_cast<int>(std::thread::hardware_concurrency()) : 1);  // 997: a prime
  }
  return smile_fast::testing::finish();
}
