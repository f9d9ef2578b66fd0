// label_map_upsampled_cpu against a loop over pixels and channels: ragged sizes, all dtypes, ties, NaN, several
// threads.
#include "core/upsampled_labels/label_map_upsampled.h"

#include "check.h"
#include "label_map_oracle.h"
#include "upsampled_problems.h"

namespace {

using namespace smile_fast;
using namespace smile_fast::testing;

template <typename Logit>
void test(std::int64_t images, std::int64_t channels, const CellGrid& grid, Logits kind, bool softmax) {
  const std::vector<Logit> logits = make_logits<Logit>(images, channels, grid, kind);
  const std::string name = name_of(images, channels, grid, dtype_of<Logit>, kind);
  Guarded<std::uint8_t> labels(images * grid.high_height * grid.high_width);
  LabelMapUpsampledArguments arguments{dtype_of<Logit>, logits.data(), images, channels, grid, softmax, labels.data()};
  label_map_upsampled_cpu(arguments, 1);
  std::int64_t wrong = 0;
  for (std::int64_t image = 0; image < images; ++image)
    for (std::int64_t y = 0; y < grid.high_height; ++y)
      for (std::int64_t x = 0; x < grid.high_width; ++x)
        wrong +=
            labels[(image * grid.high_height + y) * grid.high_width + x] != label_at<Logit>(arguments, image, y, x);
  check(wrong == 0, name + ": wrong labels: " + std::to_string(wrong));
  check(labels.canaries_live(), name + ": canaries");
  if (dtype_of<Logit> != DType::float32) return;  // threads know nothing of dtypes
  for (int threads : {2, 3, 8}) {
    Guarded<std::uint8_t> others(labels.size());
    arguments.labels = others.data();
    label_map_upsampled_cpu(arguments, threads);
    check(others == labels, name + ": other labels with threads " + std::to_string(threads));
  }
}

template <typename Logit>
void test_all() {
  for (const Logits kind : kAllLogits) {
    for (const bool softmax : {false, true}) {
      for (std::int64_t channels : {1, 3, 13}) {
        for (int stride : {8, 16}) test<Logit>(2, channels, cell_grid(43, 75, stride), kind, softmax);
        for (int stride : {1, 2, 3, 5, 64}) test<Logit>(1, channels, cell_grid(17, 22, stride), kind, softmax);
        test<Logit>(3, channels, cell_grid(1, 1, 8), kind, softmax);
      }
      for (std::int64_t channels : {33, 65, 126}) test<Logit>(1, channels, cell_grid(12, 21, 8), kind, softmax);
      test<Logit>(1, 127, cell_grid(12, 21, 8), kind, true);
    }
    test<Logit>(1, 2, cell_grid(130, 300, 8), kind, false);  // more cells than the widest vector
  }
  for (const CellGrid& grid : {cell_grid(0, 8, 8), cell_grid(8, 0, 8)})
    test<Logit>(2, 3, grid, Logits::constant, false);
  test<Logit>(0, 3, cell_grid(8, 8, 8), Logits::noise, false);
}

}  // namespace

int main() {
  on_every_cpu_capability([] { for_every_dtype([]<typename Logit>() { test_all<Logit>(); }); });
  return finish();
}
