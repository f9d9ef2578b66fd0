// The CUDA kernels of masked_bce and scale_gradient, executed on the host, against a scalar loop in double precision.
#include "core/masked_bce_cuda.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_emulation/emulation.h"
#include "masked_bce_case.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

constexpr double kLossRelative = 1e-6;

void run(const MaskedBceArguments& arguments) {
  Guarded<unsigned char> workspace(static_cast<std::int64_t>(masked_bce_cuda_workspace(arguments)));
  masked_bce_cuda(arguments, workspace.data(), nullptr);
  check(workspace.canaries_live(), "canaries of the workspace");
}

template <typename Logit>
void test(std::int64_t batch, std::int64_t organs, std::int64_t voxels, Labels pattern, std::int64_t offset = 0) {
  std::mt19937 random(static_cast<std::uint32_t>(organs * 1000003 + voxels * 7 + static_cast<int>(pattern)));
  const Case<Logit> c(batch, organs, voxels, pattern, offset, random);
  Results results(batch * organs), again(batch * organs);
  Guarded<Logit> gradient(c.logits.size(), offset);
  run(c.arguments(results, gradient.data()));
  check_against_double(c, results, gradient, kLossRelative);
  run(c.arguments(again, nullptr));
  check(again == results, c.name + ": without gradient");
  check_mean_in_place(c, results, gradient, run);
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
  for_every_dtype([]<typename Logit>() { test_all<Logit>(); });
  test<float>(1, 1, 2'100'004, Labels::runs);  // several tiles a block
  std::printf("%lld launches\n", static_cast<long long>(emulation::launches()));
  return finish();
}
