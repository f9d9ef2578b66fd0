// select_top_fraction on an NVIDIA GPU. Nothing here needs CUDA's headers, Python or torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/common/float_formats.h"

namespace smile_fast {

// All addresses are the current device's; arrays are contiguous and may be unaligned to anything but their element.
struct SelectTopFractionCudaArguments {
  DType dtype;                     // of the scores
  const void* scores;              // [length]
  const std::uint8_t* candidates;  // [length]: not 0 where the voxel may be selected
  std::int64_t length;
  const double* gamma;          // [segments]: share to select; clipped to [0, 1], NaN is 0
  const std::int64_t* offsets;  // [segments + 1]: segment s holds the voxels offsets[s] to offsets[s + 1] - 1
  std::int64_t segments;
  std::uint8_t* selection;  // [length], written: 1 where selected, else 0
};

// Bytes of device memory that select_top_fraction_cuda works in: 6 a voxel, touched only as far as there are
// candidates, and 40 KB a segment.
std::size_t select_top_fraction_cuda_workspace(const SelectTopFractionCudaArguments& arguments);

// Queues the work on a stream (a cudaStream_t) and returns. Semantics as the reference: exact; ties go to the lowest
// index, -0 equals +0, NaN ranks below -inf. Offsets that decrease or leave [0, length] give an unspecified selection,
// but never an access outside of the arrays. Throws std::runtime_error if CUDA refuses.
//
// Sync: none. How many are to be selected is computed on the device; three kernels and one memset, which a graph can
// capture.
void select_top_fraction_cuda(const SelectTopFractionCudaArguments& arguments, void* workspace, void* stream);

}  // namespace smile_fast
