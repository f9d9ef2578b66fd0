#include "core/common/cuda_formats.cuh"
#include "core/common/cuda_kernel.cuh"
#include "core/masked_bce/masked_bce_cuda.h"

namespace smile_fast {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr std::int64_t kChunk = 65536;  // elements of a block: few blocks have to come and go where there is no work

template <typename Logit>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(Logit* gradient, const double* factors, std::int64_t voxels, unsigned chunks) {
  const std::int64_t channel = blockIdx.x / chunks, begin = static_cast<std::int64_t>(blockIdx.x % chunks) * kChunk;
  const double factor = factors[channel];
  if (factor - 1.0 < kUnitFactor && 1.0 - factor < kUnitFactor) return;
  const float scale = static_cast<float>(factor);
  Logit* const own = gradient + channel * voxels;
  const std::int64_t end = begin + kChunk < voxels ? begin + kChunk : voxels;
  constexpr int kWidth = 16 / sizeof(Logit);
  const bool wide = reinterpret_cast<std::uintptr_t>(own + begin) % 16 == 0;
  const std::int64_t accesses = wide ? (end - begin) / kWidth : 0;
  for (std::int64_t access = threadIdx.x; access < accesses; access += kThreads) {
    uint4* const address = reinterpret_cast<uint4*>(own + begin) + access;
    const uint4 words = *address;
    const Pack<Logit> pack = {{words.x, words.y, words.z, words.w, 0, 0, 0, 0}};
    Pack<Logit> scaled = {};
#pragma unroll
    for (int i = 0; i < kWidth; ++i) scaled.set(i, pack.get(i) * scale);
    *address = make_uint4(scaled.words[0], scaled.words[1], scaled.words[2], scaled.words[3]);
  }
  for (std::int64_t i = begin + accesses * kWidth + threadIdx.x; i < end; i += kThreads) {
    using Bits = typename Format<Logit>::Bits;
    Bits* const address = reinterpret_cast<Bits*>(own + i);
    *address = static_cast<Bits>(Format<Logit>::bits(Format<Logit>::number(*address) * scale));
  }
}

template <typename Logit>
void queue(const ScaleGradientArguments& a, void* stream) {
  const std::int64_t chunks = ceil_div(a.voxels, kChunk);
  launch("scale_gradient", scale_kernel<Logit>, a.channels * chunks, kThreads, stream, static_cast<Logit*>(a.gradient),
         a.factors, a.voxels, static_cast<unsigned>(chunks));
}

}  // namespace

void scale_gradient_cuda(const ScaleGradientArguments& a, void* stream) {
  switch (a.dtype) {
    case DType::float32:
      return queue<float>(a, stream);
    case DType::bfloat16:
      return queue<BFloat16>(a, stream);
    case DType::float16:
      return queue<Float16>(a, stream);
  }
}

}  // namespace smile_fast
