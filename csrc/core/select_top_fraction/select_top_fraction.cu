// The threshold of a segment is the key of its k-th best candidate. Keys are integers in the order of the scores.
//
//   sample  a block a segment: up to 16,384 voxels are settled; a sample of a longer segment brackets its threshold
//   stream  reads all once: selects what is above the bracket, counts, and lists and counts in bins what is inside
//   search  four times: narrows the bracket to a bin, finds the tie at which the selection ends, or ranks the last few;
//           from the list, or from the scores again where the bracket missed the threshold or the list was full
//   write   the selection of what the streaming pass left open
//
// Where a bracket holds its threshold, the first search, seldom the second, settles it; the others find nothing to do.
// Three of them find any 32-bit key, the fourth its ties. Every pass is a launch of its own, so no block ever waits for
// another one; the block that finishes a segment last draws the conclusion. Counts are integers, and what is listed is
// ranked by key and voxel, so the order in which blocks come does not matter.
#include "core/select_top_fraction/select_sample.cuh"
#include "core/select_top_fraction/select_search.cuh"
#include "core/select_top_fraction/select_top_fraction_cuda.h"

namespace smile_fast {
namespace {

using namespace cuda;
using namespace cuda::selection;

constexpr int kSearches = 4;

struct Workspace {
  WorkspaceArena arena;
  Segment* states;
  Counters* counters;
  unsigned* bins;
  uint2* entries;

  Workspace(void* memory, std::int64_t length, std::int64_t segments) : arena(memory) {
    states = arena.take<Segment>(segments);
    counters = arena.take<Counters>(segments);
    bins = arena.take<unsigned>((segments < length / kSmall ? segments : length / kSmall) * kBins);
    entries = arena.take<uint2>(length / kListedShare);
  }
};

template <typename Score>
void queue(const Problem& p, void* stream) {
  launch("select_top_fraction: sample", sample_kernel<Score>, p.segments, kSampleThreads, stream, p);
  launch("select_top_fraction: stream", stream_kernel<Score>, item_count(p.length, p.segments), kSelectThreads, stream,
         p);
  if (p.length <= kSmall) return;  // so is every segment
  const std::int64_t blocks = Blocks(p.length).count(p.length);
  for (int i = 0; i < kSearches; ++i)
    launch("select_top_fraction: search", search_kernel<Score>, blocks, kSelectThreads, stream, p);
  launch("select_top_fraction: write", write_kernel<Score>, blocks, kSelectThreads, stream, p);
}

}  // namespace

std::size_t select_top_fraction_cuda_workspace(const SelectTopFractionArguments& a) {
  return Workspace(nullptr, a.length, a.segments).arena.bytes();
}

void select_top_fraction_cuda(const SelectTopFractionArguments& a, void* workspace, void* stream) {
  if (a.length == 0) return;
  if (a.length >> 32 != 0) throw std::runtime_error("select_top_fraction: more than 2^32 - 1 voxels");
  const Workspace w(workspace, a.length, a.segments);
  const bool all_aligned = aligned(a.scores, static_cast<std::size_t>(kQuad * element_size(a.dtype))) &&
                           aligned(a.candidates, kQuad) && aligned(a.selection, kQuad);
  const Problem p{a.scores,
                  a.candidates,
                  a.length,
                  a.gamma,
                  a.offsets,
                  a.segments,
                  a.selection,
                  all_aligned,
                  w.states,
                  w.counters,
                  w.bins,
                  w.entries,
                  a.segments > a.length / kSmall};
  switch (a.dtype) {
    case DType::float32:
      queue<float>(p, stream);
      break;
    case DType::bfloat16:
      queue<BFloat16>(p, stream);
      break;
    case DType::float16:
      queue<Float16>(p, stream);
      break;
  }
}

}  // namespace smile_fast
