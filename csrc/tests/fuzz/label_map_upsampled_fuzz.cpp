// label_map_upsampled_cpu against a loop over pixels and channels in double precision.
#include "core/upsampled_labels/label_map_upsampled.h"
#include "fuzz.h"
#include "tests/label_map_oracle.h"

namespace {

using namespace smile_fast;
using fuzz::Choices;
using fuzz::Exact;

constexpr int kMostChannels = 127;
constexpr int kFewChannels = 6;  // that so many pixels are affordable for
constexpr int kPixels = 5000, kPixelsOfMany = 800;

template <typename Logit>
void run(Choices& choices) {
  const std::int64_t images = choices.byte() % 3;
  const int channels = choices.byte() % 8 == 0 ? 1 + choices.byte() % kMostChannels : 1 + choices.byte() % kFewChannels;
  const int stride = 1 + choices.byte() % kMaxStride;
  const int width = choices.up_to(300);
  const int height = choices.up_to((channels > kFewChannels ? kPixelsOfMany : kPixels) / (width + 1));
  const bool softmax = choices.byte() % 2 != 0;
  const int threads = 1 + choices.byte() % 3;
  const CellGrid grid = cell_grid(height, width, stride);

  const Exact<Logit> logits = fuzz::choose_logits<Logit>(choices, images * channels * grid.low_height * grid.low_width);
  const Exact<std::uint8_t> labels(images * height * width), others(labels.size());
  LabelMapUpsampledArguments arguments{
      testing::dtype_of<Logit>, logits.data(), images, channels, grid, softmax, labels.data()};
  label_map_upsampled_cpu(arguments, 1);
  for (std::int64_t image = 0; image < images; ++image)
    for (std::int64_t y = 0; y < height; ++y)
      for (std::int64_t x = 0; x < width; ++x)
        fuzz::require(labels[(image * height + y) * width + x] == testing::label_at<Logit>(arguments, image, y, x),
                      "label");
  arguments.labels = others.data();
  label_map_upsampled_cpu(arguments, threads);
  fuzz::require(fuzz::same_bits(labels, others), "other labels with other threads");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::on_chosen([]<typename T>(Choices& choices) { run<T>(choices); }, data, size);
}
