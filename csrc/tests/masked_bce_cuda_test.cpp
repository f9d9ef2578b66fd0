// The CUDA kernels of masked_bce and scale_gradient, executed on the host, against a scalar loop in double precision.
#include "core/masked_bce_cuda.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_emulation/emulation.h"
#include "cuda_problem.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

template <typename Logit>
constexpr double kAllowedUlps = 1.0;  // a correctly rounded float32 result may still fall on the other side of a tie
template <>
constexpr double kAllowedUlps<float> = 4.0;

template <typename Logit>
constexpr double kScaledRelative = 0x1p-7;  // two roundings to bfloat16, or one and a half to float16
template <>
constexpr double kScaledRelative<float> = 0x1p-22;

struct Results {
  Guarded<double> sums;
  Guarded<std::int64_t> counts;
  explicit Results(std::int64_t planes) : sums(planes), counts(planes) {}
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
      const std::int64_t plane = i / voxels, voxel = i % voxels;
      const bool known = supervision.bit(plane / organs, voxel, 0, plane % organs);
      const float poison = voxel % 3 == 0 ? 1.0f : voxel % 3 == 1 ? nan : -inf;  // under w = 0
      const float extreme = voxel % 101 == 5 ? 15.0f : 1.0f;                     // down to denormal gradients
      logits[i] = from_float<Logit>(known ? normal(random) * extreme : poison);
    }
  }

  MaskedBceArguments arguments(Results& results, void* gradient) const {
    const Supervision& s = supervision;
    return {dtype_of<Logit>, logits.data(),       s.labels.data(),       s.table.data(), s.batch, s.organs,
            s.voxels,        results.sums.data(), results.counts.data(), gradient,       false};
  }
};

void run(const MaskedBceArguments& arguments) {
  Guarded<unsigned char> workspace(static_cast<std::int64_t>(masked_bce_cuda_workspace(arguments)));
  masked_bce_cuda(arguments, workspace.data(), nullptr);
  check(workspace.canaries_live(), "canaries of the workspace");
}

template <typename Logit>
void check_against_double(const Case<Logit>& c, const Results& results, const Guarded<Logit>& gradient) {
  const Supervision& s = c.supervision;
  double worst = 0.0;
  for (std::int64_t plane = 0; plane < s.batch * s.organs; ++plane) {
    double sum = 0.0;
    std::int64_t count = 0;
    for (std::int64_t voxel = 0; voxel < s.voxels; ++voxel) {
      const bool known = s.bit(plane / s.organs, voxel, 0, plane % s.organs);
      const bool positive = s.bit(plane / s.organs, voxel, 1, plane % s.organs);
      const Exact exact = exact_bce(to_float(c.logits[plane * s.voxels + voxel]), positive);
      sum += known ? exact.loss : 0.0;
      count += known;
      worst = worse(worst, ulps(gradient[plane * s.voxels + voxel], known ? exact.slope : 0.0));
    }
    check(std::abs(results.sums[plane] - sum) <= loss_relative(count) * sum,
          c.name + ": sum of plane " + std::to_string(plane));
    check(results.counts[plane] == count, c.name + ": count of plane " + std::to_string(plane));
  }
  check(worst <= kAllowedUlps<Logit>, c.name + ": gradient, ulps " + std::to_string(worst));
  check(results.sums.canaries_live() && results.counts.canaries_live() && gradient.canaries_live() &&
            c.logits.canaries_live(),
        c.name + ": canaries");
}

// In place, and divided by the number of known pairs: the same sums, a scaled gradient.
template <typename Logit>
void check_mean_in_place(const Case<Logit>& c, const Results& results, const Guarded<Logit>& gradient) {
  Guarded<Logit> overwritten(c.logits.size(), c.offset);
  std::copy_n(c.logits.data(), c.logits.size(), overwritten.data());
  Results mean(results.sums.size());
  MaskedBceArguments arguments = c.arguments(mean, overwritten.data());
  arguments.logits = overwritten.data();
  arguments.mean = true;
  run(arguments);
  check(mean.sums.equals(results.sums) && mean.counts.equals(results.counts), c.name + ": mean, sums");
  double known = 0.0, worst = 0.0;
  for (std::int64_t i = 0; i < mean.counts.size(); ++i) known += static_cast<double>(mean.counts[i]);
  for (std::int64_t i = 0; i < gradient.size(); ++i) {
    const double whole = to_float(gradient[i]) / std::max(known, 1.0);
    worst = worse(worst, std::abs(to_float(overwritten[i]) - whole) - kScaledRelative<Logit> * std::abs(whole));
  }
  check(worst <= (dtype_of<Logit> == DType::float16 ? 0x1p-24 : 0x1p-126),
        c.name + ": mean, gradient in place, " + std::to_string(worst * known));
  check(overwritten.canaries_live(), c.name + ": canaries in place");
}

template <typename Logit>
void test(std::int64_t batch, std::int64_t organs, std::int64_t voxels, Labels pattern, std::int64_t offset = 0) {
  std::mt19937 random(static_cast<std::uint32_t>(organs * 1000003 + voxels * 7 + static_cast<int>(pattern)));
  const Case<Logit> c(batch, organs, voxels, pattern, offset, random);
  Results results(batch * organs), again(batch * organs);
  Guarded<Logit> gradient(c.logits.size(), offset);
  run(c.arguments(results, gradient.data()));
  check_against_double(c, results, gradient);
  run(c.arguments(again, nullptr));
  check(again.sums.equals(results.sums) && again.counts.equals(results.counts), c.name + ": without gradient");
  check_mean_in_place(c, results, gradient);
}

template <typename Logit>
void test_scale(std::int64_t planes, std::int64_t voxels, std::int64_t offset) {
  const std::string name = "scale " + std::to_string(planes) + " x " + std::to_string(voxels) + ", dtype " +
                           std::to_string(static_cast<int>(dtype_of<Logit>));
  Guarded<Logit> gradient(planes * voxels, offset), before(planes * voxels, offset);
  std::vector<double> factors;
  for (std::int64_t plane = 0; plane < planes; ++plane) factors.push_back(plane % 2 == 0 ? 1.0 + 1e-12 : -0.3 * plane);
  for (std::int64_t i = 0; i < gradient.size(); ++i)
    before[i] = gradient[i] = from_float<Logit>(static_cast<float>(i % 23) - 11.5f);
  scale_gradient_cuda({dtype_of<Logit>, gradient.data(), factors.data(), planes, voxels}, nullptr);
  bool right = true;
  for (std::int64_t i = 0; i < gradient.size(); ++i) {
    const float factor = i / voxels % 2 == 0 ? 1.0f : static_cast<float>(factors[i / voxels]);
    right &= to_float(gradient[i]) == to_float(from_float<Logit>(to_float(before[i]) * factor));
  }
  check(right, name);
  check(gradient.canaries_live(), name + ": canaries");
}

template <typename Logit>
void test_all() {
  for (std::int64_t organs : {1, 3, 13, 64, 65, 128}) test<Logit>(organs < 64 ? 2 : 1, organs, 2072, Labels::noise);
  for (std::int64_t voxels : {1, 7, 8, 1025, 2049}) test<Logit>(2, 5, voxels, Labels::noise);
  test<Logit>(2, 34, 4104, Labels::runs);
  test<Logit>(1, 4, 1024, Labels::uniform);
  test<Logit>(1, 3, 2056, Labels::runs, 1);  // no 16-byte access may be tried
  test<Logit>(0, 3, 10, Labels::noise);
  test<Logit>(2, 3, 0, Labels::noise);
  test_scale<Logit>(4, 333, 0);
  test_scale<Logit>(3, 520, 1);
}

}  // namespace

int main() {
  test_all<float>();
  test_all<BFloat16>();
  test_all<Float16>();
  test<float>(1, 1, 2'100'004, Labels::runs);  // several tiles a block
  std::printf("%lld launches\n", static_cast<long long>(emulation::launches()));
  return finish();
}
