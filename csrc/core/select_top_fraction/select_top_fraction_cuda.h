// select_top_fraction on an NVIDIA GPU. Nothing here needs CUDA's headers, Python or torch.
#pragma once

#include <cstddef>

#include "core/select_top_fraction/select_top_fraction.h"

namespace smile_fast {

// Bytes of device memory that select_top_fraction_cuda works in: 6 a voxel, touched only as far as there are
// candidates, and 40 KB a segment.
std::size_t select_top_fraction_cuda_workspace(const SelectTopFractionArguments& arguments);

// Queues the work on a stream (a cudaStream_t) and returns; all addresses are the current device's. Semantics as the
// reference: exact; ties go to the lowest index, -0 equals +0, NaN ranks below -inf. Offsets that decrease or leave
// [0, length] give an unspecified selection, but never an access outside of the arrays. Throws std::runtime_error if
// CUDA refuses.
//
// Sync: none. How many are to be selected is computed on the device; five kernels and one memset, which a graph can
// capture.
void select_top_fraction_cuda(const SelectTopFractionArguments& arguments, void* workspace, void* stream);

}  // namespace smile_fast
