// select_top_fraction on an NVIDIA GPU. Nothing here needs CUDA's headers, Python or torch.
#pragma once

#include <cstddef>

#include "core/select_top_fraction/select_top_fraction.h"

namespace smile_fast {

// Bytes of device memory that select_top_fraction_cuda works in: 0.57 a voxel (a list of 8 bytes for a 14th of them),
// 64 a segment, and 8 KB for each of at most length / 16,384 segments; 1.07 a voxel at most, beside the 64.
std::size_t select_top_fraction_cuda_workspace(const SelectTopFractionArguments& arguments);

// Queues the work on a stream (a cudaStream_t) and returns; all addresses are the current device's. Semantics as the
// reference: exact; ties go to the lowest index, -0 equals +0, NaN ranks below -inf. Offsets that decrease or leave
// [0, length] give an unspecified selection, but never an access outside of the arrays. Throws std::runtime_error if
// CUDA refuses, or for more than 2^32 - 1 voxels.
//
// Sync: none. How many are to be selected is computed on the device; seven kernels (two up to 16,384 voxels) and no
// memset, which a graph can capture. Scores are read once and a sample of them twice, unless the sample misled.
void select_top_fraction_cuda(const SelectTopFractionArguments& arguments, void* workspace, void* stream);

}  // namespace smile_fast
