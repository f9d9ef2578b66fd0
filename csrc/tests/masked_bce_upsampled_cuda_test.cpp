// The CUDA kernel of masked_bce_upsampled, executed on the host, against loops over all voxels in double precision.
#include "core/masked_bce_upsampled/masked_bce_upsampled_cuda.h"

#include <algorithm>
#include <array>

#include "check.h"
#include "kernels.h"
#include "losses.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

using Size = std::array<std::int64_t, 3>;

std::int64_t volume(const Size& size) { return size[0] * size[1] * size[2]; }

// What an output element reads of an axis, by the definition of align_corners=False.
struct Source {
  std::int64_t near, far;
  double weight;
};
Source source_of(std::int64_t i, std::int64_t input, std::int64_t output) {
  const double src = std::max((i + 0.5) * static_cast<double>(input) / static_cast<double>(output) - 0.5, 0.0);
  const auto near = std::min(static_cast<std::int64_t>(src), input - 1);
  const std::int64_t far = std::min(near + 1, input - 1);
  return {near, far, near == far ? 0.0 : src - static_cast<double>(near)};
}

struct Corner {
  std::int64_t logit;
  double weight;
};
std::array<Corner, 8> corners_of(std::int64_t voxel, const Size& low, const Size& high) {
  const Size at = {voxel / high[2] / high[1], voxel / high[2] % high[1], voxel % high[2]};
  std::array<Corner, 8> corners{};
  for (int corner = 0; corner < 8; ++corner) {
    Corner c{0, 1.0};
    for (int axis = 0; axis < 3; ++axis) {
      const Source s = source_of(at[axis], low[axis], high[axis]);
      const bool far = corner >> axis & 1;
      c.logit = c.logit * low[axis] + (far ? s.far : s.near);
      c.weight *= far ? s.weight : 1.0 - s.weight;
    }
    corners[corner] = c;
  }
  return corners;
}

template <typename Logit>
constexpr double kRelative = 2e-6;  // of the largest entry of a gradient; a 16-bit one is rounded once at the end
template <>
constexpr double kRelative<BFloat16> = 0x1p-8;
template <>
constexpr double kRelative<Float16> = 0x1p-11;

template <typename Logit>
void check_channel(const Supervision& s, const Size& low, const Size& high, const Guarded<Logit>& logits,
                   std::int64_t channel, double found_sum, std::int64_t found_count, const Guarded<Logit>& gradient,
                   const std::string& name) {
  const std::int64_t pixels = volume(low);
  std::vector<double> exact(static_cast<std::size_t>(pixels), 0.0);
  double sum = 0.0, largest = 0.0, worst = 0.0;
  std::int64_t count = 0;
  for (std::int64_t voxel = 0; voxel < s.voxels; ++voxel) {
    if (!s.bit(channel / s.organs, voxel, 0, channel % s.organs)) continue;
    double u = 0.0;
    const auto corners = corners_of(voxel, low, high);
    for (const Corner& c : corners)
      if (c.weight != 0) u += c.weight * to_float(logits[channel * pixels + c.logit]);
    const Exact bce = exact_bce(u, s.bit(channel / s.organs, voxel, 1, channel % s.organs));
    sum += bce.loss;
    ++count;
    for (const Corner& c : corners) exact[static_cast<std::size_t>(c.logit)] += c.weight * bce.slope;
  }
  for (const double value : exact) largest = std::max(largest, std::abs(value));
  for (std::int64_t i = 0; i < pixels; ++i)
    worst = worse(worst, std::abs(to_float(gradient[channel * pixels + i]) - exact[static_cast<std::size_t>(i)]));
  check(std::abs(found_sum - sum) <= loss_relative(count) * sum, name + ": sum of channel " + std::to_string(channel));
  check(found_count == count, name + ": count of channel " + std::to_string(channel));
  check(worst <= kRelative<Logit> * largest, name + ": gradient of channel " + std::to_string(channel) + " by " +
                                                 std::to_string(largest > 0 ? worst / largest : worst));
}

template <typename Logit>
void test(std::int64_t batch, std::int64_t organs, const Size& low, const Size& high, Labels pattern) {
  std::mt19937 random(static_cast<std::uint32_t>(organs * 1000003 + volume(high)));
  const Supervision s(batch, organs, volume(high), pattern, random);
  const std::int64_t channels = batch * organs, pixels = volume(low);
  const std::string name = std::to_string(batch) + " x " + std::to_string(organs) + ", " + std::to_string(low[0]) +
                           " " + std::to_string(low[1]) + " " + std::to_string(low[2]) + " to " +
                           std::to_string(high[0]) + " " + std::to_string(high[1]) + " " + std::to_string(high[2]) +
                           ", dtype " + std::to_string(static_cast<int>(dtype_of<Logit>));
  std::normal_distribution<float> normal(0.0f, 4.0f);
  Guarded<Logit> logits(channels * pixels);
  for (std::int64_t i = 0; i < logits.size(); ++i)  // every third organ is never known: its logits must not matter
    logits[i] = from_float<Logit>(i / std::max<std::int64_t>(pixels, 1) % organs % kWordBits % 3 == 0
                                      ? std::numeric_limits<float>::quiet_NaN()
                                      : normal(random));
  Guarded<double> sums(channels), sums_alone(channels);
  Guarded<std::int64_t> counts(channels), counts_alone(channels);
  Guarded<Logit> gradient(channels * pixels);
  MaskedBceUpsampledArguments arguments{
      dtype_of<Logit>, logits.data(), s.labels.data(),          s.table.data(),
      batch,           organs,        {low[0], low[1], low[2]}, {high[0], high[1], high[2]},
      sums.data(),     counts.data(), gradient.data()};
  Guarded<unsigned char> workspace(static_cast<std::int64_t>(masked_bce_upsampled_cuda_workspace(arguments)));
  masked_bce_upsampled_cuda(arguments, workspace.data(), nullptr);
  for (std::int64_t channel = 0; channel < channels; ++channel)
    check_channel(s, low, high, logits, channel, sums[channel], counts[channel], gradient, name);
  check(sums.canaries_live() && counts.canaries_live() && gradient.canaries_live() && workspace.canaries_live(),
        name + ": canaries");
  arguments.sums = sums_alone.data();
  arguments.counts = counts_alone.data();
  arguments.gradient = nullptr;
  masked_bce_upsampled_cuda(arguments, workspace.data(), nullptr);
  check(sums_alone == sums && counts_alone == counts, name + ": without gradient");
}

template <typename Logit>
void test_sizes() {
  test<Logit>(1, 3, {1, 9, 8}, {1, 72, 64}, Labels::runs);   // stride 8, several tiles
  test<Logit>(2, 2, {1, 5, 7}, {1, 23, 30}, Labels::noise);  // no integer ratio
  test<Logit>(1, 2, {1, 3, 2}, {1, 40, 50}, Labels::noise);  // more than a span a cell
  test<Logit>(1, 2, {1, 9, 10}, {1, 9, 10}, Labels::noise);  // the same size
  test<Logit>(1, 2, {1, 20, 19}, {1, 7, 9}, Labels::noise);  // smaller
  test<Logit>(1, 2, {1, 1, 1}, {1, 5, 33}, Labels::noise);
  test<Logit>(1, 3, {4, 6, 8}, {10, 13, 17}, Labels::noise);  // a volume
  test<Logit>(1, 2, {2, 1, 3}, {2, 4, 12}, Labels::runs);
}

}  // namespace

int main() {
  test_sizes<float>();
  test_sizes<BFloat16>();
  test_sizes<Float16>();
  for (std::int64_t organs : {1, 13, 64, 65, 128}) test<float>(1, organs, {1, 4, 4}, {1, 15, 16}, Labels::noise);
  test<float>(1, 2, {1, 1, 2}, {1, 2, 700}, Labels::noise);  // many spans a cell
  test<float>(0, 2, {1, 2, 2}, {1, 4, 4}, Labels::noise);
  test<float>(1, 2, {1, 2, 2}, {1, 0, 4}, Labels::noise);
  return finish();
}
