// The CUDA kernels of masked_bce and scale_gradient, executed on the host, against a scalar loop in double precision.
#include "core/masked_bce/masked_bce_cuda.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_emulation/emulation.h"
#include "masked_bce_case.h"
#include "scale_gradient.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

// The workspace's bytes are arbitrary at first.
void run(const MaskedBceArguments& arguments) {
  Guarded<unsigned char> workspace(static_cast<std::int64_t>(masked_bce_cuda_workspace(arguments)));
  const std::int64_t before = emulation::launches();
  masked_bce_cuda(arguments, workspace.data(), nullptr);
  check(emulation::launches() - before <= 2, "more than two launches");
  check(workspace.canaries_live(), "canaries of the workspace");
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
  check(again == results, c.name + ": without gradient");
  check_mean_in_place(c, results, gradient, run);
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
  const auto scale = [](const ScaleGradientArguments& arguments) { scale_gradient_cuda(arguments, nullptr); };
  test_scale_gradient<Logit>(4, 333, 0, scale);
  test_scale_gradient<Logit>(3, 520, 1, scale);
}

}  // namespace

int main() {
  for_every_dtype([]<typename Logit>() { test_all<Logit>(); });
  test<float>(2, 2, 69'632, Labels::runs);     // several groups of blocks, several parts of the labels
  test<float>(1, 1, 2'100'004, Labels::runs);  // several tiles a block, several blocks a sum and several sums
  return finish();
}
