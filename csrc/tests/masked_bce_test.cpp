// masked_bce_cpu against a scalar loop in double precision: ragged sizes, all dtypes, many organs, several threads.
#include "core/masked_bce.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/float_formats.h"
#include "core/label_counts.h"
#include "core/targets.h"

namespace {

using smile_fast::BFloat16;
using smile_fast::DType;
using smile_fast::Float16;
using smile_fast::kLabelValues;
using smile_fast::kWordBits;
using smile_fast::MaskedBceArguments;
using smile_fast::Target;
using smile_fast::testing::check;
using smile_fast::testing::worse;

constexpr std::int64_t kCanaries = 16;  // elements after every result that must stay untouched
constexpr std::uint8_t kCanary = 0xa5;

template <typename Logit>
constexpr DType dtype_of = DType::float32;
template <>
constexpr DType dtype_of<BFloat16> = DType::bfloat16;
template <>
constexpr DType dtype_of<Float16> = DType::float16;

enum class Labels { uniform, runs, noise };

// Lines of their own for large results: the kernels store differently there.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  T* allocate(std::size_t size) { return static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* values, std::size_t) { ::operator delete(values, std::align_val_t{64}); }
  bool operator==(const AlignedAllocator&) const { return true; }
};

template <typename Logit>
struct Problem {
  std::int64_t batch, organs, voxels, words;
  std::vector<Logit, AlignedAllocator<Logit>> logits;
  std::vector<std::uint8_t> labels;
  std::vector<std::uint32_t> table;

  bool bit(std::int64_t image, std::int64_t voxel, int which, std::int64_t organ) const {
    const std::int64_t row = image * kLabelValues + labels[image * voxels + voxel];
    return table[(row * 2 + which) * words + organ / kWordBits] >> (organ % kWordBits) & 1;
  }
};

template <typename T>
struct Result {
  explicit Result(std::int64_t size) : size(size), values(size + kCanaries) {
    std::memset(static_cast<void*>(values.data()), kCanary, values.size() * sizeof(T));
  }
  bool canaries_live() const {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data() + size);
    for (std::size_t i = 0; i < kCanaries * sizeof(T); ++i)
      if (bytes[i] != kCanary) return false;
    return true;
  }
  std::int64_t size;
  std::vector<T, AlignedAllocator<T>> values;
};

// A third of the organs are never known, so that tiles are skipped; a third are known everywhere and never positive.
template <typename Logit>
Problem<Logit> make_problem(std::int64_t batch, std::int64_t organs, std::int64_t voxels, Labels pattern) {
  Problem<Logit> p{batch, organs, voxels, (organs + kWordBits - 1) / kWordBits, {}, {}, {}};
  std::mt19937 random(static_cast<std::uint32_t>(organs * 1000003 + voxels * 7 + static_cast<int>(pattern)));
  std::normal_distribution<float> normal(0.0f, 6.0f);
  for (std::int64_t i = 0; i < batch * organs * voxels; ++i)
    p.logits.push_back(smile_fast::from_float<Logit>(normal(random)));
  std::uint8_t label = 0;
  for (std::int64_t i = 0; i < batch * voxels; ++i) {
    if (pattern == Labels::noise || (pattern == Labels::runs && random() % 97 == 0))
      label = static_cast<std::uint8_t>(random());
    p.labels.push_back(label);
  }
  for (std::int64_t row = 0; row < batch * kLabelValues; ++row) {
    for (int which : {0, 1}) {
      for (std::int64_t word = 0; word < p.words; ++word) {
        std::uint32_t bits = static_cast<std::uint32_t>(random());
        for (int organ = 0; organ < kWordBits; ++organ) {
          if (organ % 3 == 0) bits &= ~(1u << organ);
          if (organ % 3 == 1) bits = which == 0 ? bits | 1u << organ : bits & ~(1u << organ);
        }
        p.table.push_back(bits);
      }
    }
  }
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (std::int64_t image = 0; image < batch; ++image)  // poison under w = 0
    for (std::int64_t organ = 0; organ < organs; ++organ)
      for (std::int64_t voxel = 0; voxel < voxels; ++voxel)
        if (!p.bit(image, voxel, 0, organ) && voxel % 3)
          p.logits[(image * organs + organ) * voxels + voxel] =
              smile_fast::from_float<Logit>(voxel % 3 == 1 ? nan : -inf);
  return p;
}

// Distance of a gradient from the exact one, in units in the last place of its format.
double ulps(float computed, double exact) {
  const float nearest = std::abs(static_cast<float>(exact));
  const double ulp = static_cast<double>(std::nextafter(nearest, 2.0f)) - static_cast<double>(nearest);
  return std::abs(computed - exact) / ulp;
}
double ulps(BFloat16 computed, double exact) {
  return std::abs(computed.bits - smile_fast::from_float<BFloat16>(static_cast<float>(exact)).bits);
}
double ulps(Float16 computed, double exact) {
  return std::abs(computed.bits - smile_fast::from_float<Float16>(static_cast<float>(exact)).bits);
}

template <typename Logit>
constexpr double kAllowedUlps = 1.0;  // a correctly rounded float32 result may still fall on the other side of a tie
template <>
constexpr double kAllowedUlps<float> = 4.0;

template <typename Logit>
constexpr double kScaledRelative = 0x1p-7;  // two roundings to bfloat16, or one and a half to float16
template <>
constexpr double kScaledRelative<float> = 0x1p-22;

template <typename Logit>
void check_against_double(const Problem<Logit>& p, const Result<double>& sums, const Result<std::int64_t>& counts,
                          const Result<Logit>& gradient, const std::string& name) {
  double worst_gradient = 0.0;
  for (std::int64_t plane = 0; plane < p.batch * p.organs; ++plane) {
    double sum = 0.0;
    std::int64_t count = 0;
    for (std::int64_t voxel = 0; voxel < p.voxels; ++voxel) {
      const bool known = p.bit(plane / p.organs, voxel, 0, plane % p.organs);
      const bool positive = p.bit(plane / p.organs, voxel, 1, plane % p.organs);
      const double z = smile_fast::to_float(p.logits[plane * p.voxels + voxel]);
      const double x = positive ? -z : z;
      const double slope = x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
      sum += known ? std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))) : 0.0;
      count += known;
      const double exact = known ? (positive ? -slope : slope) : 0.0;
      worst_gradient = worse(worst_gradient, ulps(gradient.values[plane * p.voxels + voxel], exact));
    }
    // One voxel's loss carries 2 float32 roundings of exp and 1 of the sum; over many they average out.
    check(std::abs(sums.values[plane] - sum) <= 3e-7 * sum, name + ": sum of plane " + std::to_string(plane));
    check(counts.values[plane] == count, name + ": count of plane " + std::to_string(plane));
  }
  check(worst_gradient <= kAllowedUlps<Logit>, name + ": gradient, ulps " + std::to_string(worst_gradient));
  check(sums.canaries_live() && counts.canaries_live() && gradient.canaries_live(), name + ": canaries");
}

template <typename Logit>
void test(std::int64_t batch, std::int64_t organs, std::int64_t voxels, Labels pattern) {
  const auto p = make_problem<Logit>(batch, organs, voxels, pattern);
  const std::string name = std::to_string(batch) + " x " + std::to_string(organs) + " x " + std::to_string(voxels) +
                           ", dtype " + std::to_string(static_cast<int>(dtype_of<Logit>)) + ", labels " +
                           std::to_string(static_cast<int>(pattern));
  const std::int64_t planes = batch * organs;
  Result<double> sums(planes);
  Result<std::int64_t> counts(planes);
  Result<Logit> gradient(planes * voxels);
  const MaskedBceArguments arguments{
      dtype_of<Logit>, p.logits.data(),    p.labels.data(),      p.table.data(),         batch, organs,
      voxels,          sums.values.data(), counts.values.data(), gradient.values.data(), false};
  smile_fast::masked_bce_cpu(arguments, 1);
  check_against_double(p, sums, counts, gradient, name);

  for (int threads : {2, 3, 8}) {
    Result<double> other_sums(planes);
    Result<std::int64_t> other_counts(planes);
    Result<Logit> other_gradient(planes * voxels);
    MaskedBceArguments other = arguments;
    other.sums = other_sums.values.data();
    other.counts = other_counts.values.data();
    other.gradient = other_gradient.values.data();
    smile_fast::masked_bce_cpu(other, threads);
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    check(same(sums.values, other_sums.values) && same(counts.values, other_counts.values) &&
              same(gradient.values, other_gradient.values),
          name + ": other bits with threads " + std::to_string(threads));
    other.gradient = nullptr;
    smile_fast::masked_bce_cpu(other, threads);
    check(same(sums.values, other_sums.values) && same(counts.values, other_counts.values),
          name + ": other bits without gradient, threads " + std::to_string(threads));
  }

  // In place, and divided by the number of known pairs.
  Problem<Logit> overwritten = p;
  Result<double> mean_sums(planes);
  Result<std::int64_t> mean_counts(planes);
  MaskedBceArguments in_place = arguments;
  in_place.logits = in_place.gradient = overwritten.logits.data();
  in_place.sums = mean_sums.values.data();
  in_place.counts = mean_counts.values.data();
  in_place.mean = true;
  smile_fast::masked_bce_cpu(in_place, 2);
  check(std::memcmp(mean_sums.values.data(), sums.values.data(), planes * sizeof(double)) == 0, name + ": mean, sums");
  const double known = std::accumulate(counts.values.begin(), counts.values.begin() + planes, 0.0);
  double worst = 0.0;
  for (std::int64_t i = 0; i < planes * voxels; ++i) {
    const double whole = smile_fast::to_float(gradient.values[i]) / std::max(known, 1.0);
    const double scaled = smile_fast::to_float(overwritten.logits[i]);
    worst = worse(worst, std::abs(scaled - whole) - kScaledRelative<Logit> * std::abs(whole));
  }
  check(worst <= (dtype_of<Logit> == DType::float16 ? 0x1p-24 : 0x1p-126), name + ": mean, gradient in place");
}

template <typename Logit>
void test_all() {
  for (std::int64_t organs : {1, 3, 13, 33, 64, 65, 128}) {
    for (std::int64_t voxels : {1, 7, 8, 511, 513, 1025}) test<Logit>(2, organs, voxels, Labels::noise);
    test<Logit>(1, organs, 2048, Labels::uniform);
  }
  for (std::int64_t organs : {3, 33}) test<Logit>(2, organs, 3 * 16384 + 5, Labels::runs);
  test<Logit>(1, 9, 1 << 18, Labels::runs);  // large and aligned enough for stores past the caches
  test<Logit>(0, 3, 10, Labels::noise);
  test<Logit>(2, 3, 0, Labels::noise);
}

}  // namespace

int main() {
  for (const Target target : {Target::plain, Target::avx2, Target::avx512}) {
    if (!smile_fast::runs(target)) continue;
    smile_fast::use_target(target);
    test_all<float>();
    test_all<BFloat16>();
    test_all<Float16>();
  }
  return smile_fast::testing::finish();
}
