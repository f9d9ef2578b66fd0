// masked_bce on an NVIDIA GPU. Nothing here needs CUDA's headers, Python or torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/masked_bce/masked_bce.h"
#include "core/masked_bce/scale_gradient.h"

namespace smile_fast {

// Bytes of device memory that masked_bce_cuda works in: one double per organ and 1,024 (float32) or 2,048 voxels, i.e.
// 0.2% of the logits, and a few KB. It may hold anything before.
std::size_t masked_bce_cuda_workspace(const MaskedBceArguments& arguments);

// Queues the work on a stream (a cudaStream_t) and returns; all addresses are the current device's. Semantics as
// masked_bce_cpu. Throws std::runtime_error if CUDA refuses.
//
// Sync: none; two launches: known voxels, then losses, gradients, their sums and the loss.
// Numerics: as masked_bce_cpu; the same bits on every call, and on every GPU of one architecture.
void masked_bce_cuda(const MaskedBceArguments& arguments, void* workspace, void* stream);

// As scale_gradient_cpu. The host does not wait to learn which factors are 1.
void scale_gradient_cuda(const ScaleGradientArguments& arguments, void* stream);

}  // namespace smile_fast
