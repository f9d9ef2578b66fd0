// masked_bce_cpu against a scalar loop in double precision: ragged sizes, all dtypes, many organs, several threads.
#include "core/masked_bce/masked_bce.h"

#include <cstdint>
#include <random>
#include <string>

#include "check.h"
#include "masked_bce_case.h"
#include "scale_gradient.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

template <typename Logit>
void test(std::int64_t batch, std::int64_t organs, std::int64_t voxels, Labels pattern) {
  std::mt19937 random(static_cast<std::uint32_t>(organs * 1000003 + voxels * 7 + static_cast<int>(pattern)));
  const Case<Logit> c(batch, organs, voxels, pattern, 0, random);
  Results results(batch * organs);
  Guarded<Logit> gradient(c.logits.size());
  masked_bce_cpu(c.arguments(results, gradient.data()), 1);
  check_against_double(c, results, gradient);
  for (const int threads : {2, 3, 8}) {
    Results others(batch * organs);
    Guarded<Logit> other_gradient(c.logits.size());
    masked_bce_cpu(c.arguments(others, other_gradient.data()), threads);
    check(others == results && other_gradient == gradient,
          c.name + ": other bits with threads " + std::to_string(threads));
    masked_bce_cpu(c.arguments(others, nullptr), threads);
    check(others == results, c.name + ": other bits without gradient, threads " + std::to_string(threads));
  }
  check_mean_in_place(c, results, gradient, [](const MaskedBceArguments& arguments) { masked_bce_cpu(arguments, 2); });
}

template <typename Logit>
void test_all() {
  for (std::int64_t organs : {1, 3, 13, 33, 64, 65, 128}) {
    for (std::int64_t voxels : {1, 7, 8, 511, 513, 895, 897, 1793}) test<Logit>(2, organs, voxels, Labels::noise);
    test<Logit>(1, organs, 2048, Labels::uniform);
  }
  for (std::int64_t organs : {3, 33}) test<Logit>(2, organs, 3 * 16384 + 5, Labels::runs);
  test<Logit>(1, 9, 1 << 18, Labels::runs);  // large and aligned enough for stores past the caches
  test<Logit>(0, 3, 10, Labels::noise);
  test<Logit>(2, 3, 0, Labels::noise);
  const auto scale = [](const ScaleGradientArguments& arguments) { scale_gradient_cpu(arguments, 3); };
  for (const std::int64_t voxels : {0, 1, 333, (1 << 16) + 7})
    for (const std::int64_t offset : {0, 1}) test_scale_gradient<Logit>(4, voxels, offset, scale);
}

}  // namespace

int main() {
  check_cpu_capabilities();
  on_every_cpu_capability([] { for_every_dtype([]<typename Logit>() { test_all<Logit>(); }); });
  return finish();
}
