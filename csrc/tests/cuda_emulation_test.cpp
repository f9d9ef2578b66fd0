// Whether the emulation finds what it is there for. Without an argument: a correct kernel. With the name of a bug: the
// same kernel with that bug, which must be reported; CMakeLists.txt says by whom.
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "core/common/cuda_kernel.cuh"

namespace {

using smile_fast::cuda::launch;

enum class Bug { none, missing_barrier, outside_of_global, outside_of_shared, divergent_barrier, blocks, fence };

constexpr int kThreads = 64;

struct Shared {
  int values[kThreads];
  bool last;
};

// Each thread adds its neighbour's value; the last block adds up what all blocks have written.
void neighbours(const int* input, int* output, int* total, unsigned* finished, Bug bug) {
  SMILE_FAST_SHARED(Shared, shared);
  const int thread = threadIdx.x, at = blockIdx.x * kThreads + thread;
  const int* last = input + gridDim.x * kThreads - 1;
  shared.values[thread] = input[bug == Bug::outside_of_global && input + at == last ? at + 1 : at];
  if (bug == Bug::outside_of_shared && thread == kThreads - 1) reinterpret_cast<int*>(&shared + 1)[thread] = 1;
  if (bug == Bug::divergent_barrier && thread == 5) return;
  if (bug != Bug::missing_barrier) __syncthreads();
  output[at] = shared.values[thread] + shared.values[(thread + 1) % kThreads];
  if (bug == Bug::blocks) output[(at + kThreads / 2) % (gridDim.x * kThreads)] = 0;
  if (bug != Bug::fence) __threadfence();
  __syncthreads();
  if (thread == 0) {
    shared.last = atomicAdd(finished, 1u) + 1 == gridDim.x;
    if (bug != Bug::fence) __threadfence();
  }
  __syncthreads();
  if (shared.last && thread == 0)
    for (unsigned i = 0; i < gridDim.x * kThreads; ++i) *total += output[i];
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "none";
  const std::vector<std::string> names = {
      "none", "missing_barrier", "outside_of_global", "outside_of_shared", "divergent_barrier", "blocks", "fence"};
  Bug bug = Bug::none;
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == name) bug = static_cast<Bug>(i);
  constexpr int kBlocks = 3;
  std::vector<int> input(kBlocks * kThreads), output(kBlocks * kThreads);
  for (int i = 0; i < kBlocks * kThreads; ++i) input[static_cast<std::size_t>(i)] = i;
  int total = 0;
  unsigned finished = 0;
  launch("neighbours", neighbours, kBlocks, kThreads, nullptr, input.data(), output.data(), &total, &finished, bug);
  smile_fast::testing::check(total == kBlocks * kThreads * (kBlocks * kThreads - 1), "the sum of all");
  return smile_fast::testing::finish();
}
