// The inner part of masked_bce_upsampled_cpu: a band of one image, at most 32 organs, one thread.
#pragma once

#include <cstdint>

#include "core/masked_bce_upsampled/masked_bce_upsampled.h"
#include "core/masked_bce_upsampled/upsampled_columns.h"

namespace smile_fast {

// The axis along which an image is cut into bands: the rows of an image, or the slices of a volume. A "slice" is what
// one element of this axis holds: of an image, a row.
struct OuterAxis {
  std::int64_t low, high;     // sizes
  std::int64_t slice_logits;  // of a slice of the low grid
};

SMILE_FAST_INLINE bool is_image(const MaskedBceUpsampledArguments& a) { return a.low.depth == 1 && a.high.depth == 1; }

SMILE_FAST_INLINE OuterAxis outer_axis(const MaskedBceUpsampledArguments& a) {
  if (is_image(a)) return {a.low.height, a.high.height, a.low.width};
  return {a.low.depth, a.high.depth, a.low.height * a.low.width};
}

// The high slices whose interpolation starts at a low slice in [low_begin, low_end): their gradients
// touch the slices low_begin to low_end, both included, the outermost of which are shared with the next bands.
struct UpsampledBand {
  std::int64_t image;
  std::int64_t organ, organs;  // all within one word of the table
  std::int64_t low_begin, low_end;
  std::int64_t begin, end;  // high slices
  float* first;             // [organs, slice_logits]: gradient of slice low_begin; null: of this band alone
  float* last;              // the same for slice low_end
  float* scratch;           // [2, organs, slice_logits]
  double* sums;             // [organs]
};

constexpr int kUpsampledStack = 16 << 10;  // bytes of stack that a thread takes at most

using MaskedBceUpsampledKernel = void(const MaskedBceUpsampledArguments& arguments, const ColumnTables& columns,
                                      const UpsampledBand& band);

namespace plain {
MaskedBceUpsampledKernel masked_bce_upsampled_kernel;
}
namespace avx2 {
MaskedBceUpsampledKernel masked_bce_upsampled_kernel;
}
namespace avx512 {
MaskedBceUpsampledKernel masked_bce_upsampled_kernel;
}

}  // namespace smile_fast
