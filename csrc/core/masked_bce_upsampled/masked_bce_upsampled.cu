// A block owns a tile of logits and makes their gradients as a gather: it computes every voxel whose interpolation
// reads one of them, those of its halo included, which a neighbour computes, too. Nothing is added atomically.
//
// A thread has a span: up to eight neighbouring voxels of one row that lie between the same two logits. It interpolates
// along the other axes once, goes along the span, and reduces its gradients to two numbers, one for each of the two
// logits. Those are reduced over the rows through shared memory. The labels of a span are decoded once for 32 organs.
#include "core/common/cuda_formats.cuh"
#include "core/masked_bce/bce.cuh"
#include "core/masked_bce/channel_sums.cuh"
#include "core/masked_bce_upsampled/interpolation.cuh"
#include "core/masked_bce_upsampled/masked_bce_upsampled_cuda.h"

namespace smile_fast {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSpan = 8;
constexpr int kMaxPixels = 105;  // logits of a tile and organ
constexpr int kLanesPerPixel = 4;

struct Problem {
  const void* logits;
  const std::uint8_t* labels;
  const std::uint32_t* table;
  void* gradient;
  double* partials;  // [batch * organs, tiles]
  std::int64_t organs, words;
  Axis z, y, x;
  int tile_z, tile_y, tile_x;  // logits of a tile
  unsigned tiles_z, tiles_y, tiles_x;
  int parts;  // spans of a cell and row
};

// A tile: the logits it owns, and the voxels that it computes.
struct Tile {
  std::int64_t z, y, x;       // first logit
  int depth, height, width;   // logits
  std::int64_t row_z, row_y;  // first voxel
  int rows_z, rows_y;         // voxels
  int cells_x;                // width + 1, from cell x - 1 on
};

struct Row {
  float weight_z, weight_y;
  short cell_z, cell_y;  // from the tile's first cell on
};

struct Shared {
  uint2 lookup[kLabelValues];
  double losses[kWarps][kWordBits];
  float left[2][kThreads], right[2][kThreads];  // of the spans, for this organ and the one before
  float gradient[kWordBits][kMaxPixels];
  Row rows[kThreads / 2];  // of the round
  unsigned known[kWarps];  // anywhere in a warp
};

__device__ __forceinline__ int smaller(std::int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }

__device__ __forceinline__ Tile tile_of(const Problem& p, unsigned number) {
  Tile t;
  t.x = static_cast<std::int64_t>(number % p.tiles_x) * p.tile_x;
  t.y = static_cast<std::int64_t>(number / p.tiles_x % p.tiles_y) * p.tile_y;
  t.z = static_cast<std::int64_t>(number / p.tiles_x / p.tiles_y) * p.tile_z;
  t.width = smaller(p.x.low - t.x, p.tile_x);
  t.height = smaller(p.y.low - t.y, p.tile_y);
  t.depth = smaller(p.z.low - t.z, p.tile_z);
  t.cells_x = t.width + 1;
  t.row_y = p.y.begin(t.y - 1);
  t.row_z = p.z.begin(t.z - 1);
  t.rows_y = static_cast<int>(p.y.begin(t.y + t.height) - t.row_y);
  t.rows_z = static_cast<int>(p.z.begin(t.z + t.depth) - t.row_z);
  return t;
}

// Up to kSpan voxels of one row and cell, and what they read.
struct Span {
  int count;
  bool owned;                // their losses are this tile's, not only a neighbour's
  std::int64_t voxel;        // the first one, in the image
  float first, step;         // weight of the right logit: first + i * step
  float weight_z, weight_y;  // of the far rows of logits
  std::int64_t corners[4];   // offsets of the rows' left logits in a channel: near and far in y, then the same far in z
  int right;                 // from the left logit to the right one: 0 or 1
  unsigned known[kSpan], positive[kSpan];
  unsigned known_anywhere;  // in the warp
};

__device__ __forceinline__ Span span_of(const Problem& p, const Tile& t, int first_row, int rows, Row* about) {
  Span s;
  const int spans = t.cells_x * p.parts, thread = threadIdx.x;
  const int row = first_row + thread / spans, part = thread % spans % p.parts;
  const std::int64_t cell = t.x - 1 + thread % spans / p.parts;
  s.count = 0;
  s.owned = false;
  s.known_anywhere = 0;
  if (thread / spans >= rows) return s;
  const std::int64_t z = t.row_z + row / t.rows_y, y = t.row_y + row % t.rows_y;
  const std::int64_t cell_z = p.z.cell(z), cell_y = p.y.cell(y);
  const std::int64_t begin = p.x.begin(cell) + part * kSpan, end = p.x.begin(cell + 1);
  s.count = end - begin < kSpan ? static_cast<int>(end > begin ? end - begin : 0) : kSpan;
  s.owned = (cell >= t.x || cell < 0) && (cell_y >= t.y || cell_y < 0) && (cell_z >= t.z || cell_z < 0);
  s.voxel = (z * p.y.high + y) * p.x.high + begin;
  s.first = p.x.weight(begin, cell);
  const bool between = cell >= 0 && cell < p.x.low - 1;
  s.step = between ? static_cast<float>(static_cast<double>(2 * p.x.low) * p.x.reciprocal) : 0.0f;
  s.weight_z = p.z.weight(z, cell_z);
  s.weight_y = p.y.weight(y, cell_y);
  const std::int64_t left = p.x.left(cell);
  s.right = static_cast<int>(p.x.right(cell) - left);
  const std::int64_t zs[2] = {p.z.left(cell_z), p.z.right(cell_z)}, ys[2] = {p.y.left(cell_y), p.y.right(cell_y)};
#pragma unroll
  for (int i = 0; i < 4; ++i) s.corners[i] = (zs[i / 2] * p.y.low + ys[i % 2]) * p.x.low + left;
  if (thread % spans == 0)
    about[thread / spans] = {s.weight_z, s.weight_y, static_cast<short>(cell_z - (t.z - 1)),
                             static_cast<short>(cell_y - (t.y - 1))};
  return s;
}

__device__ __forceinline__ void decode(const std::uint8_t* labels, const uint2* lookup, Span& s) {
  unsigned any = 0;
#pragma unroll
  for (int i = 0; i < kSpan; ++i) {
    const uint2 row = i < s.count ? lookup[__ldg(labels + s.voxel + i)] : make_uint2(0, 0);
    s.known[i] = row.x;
    s.positive[i] = row.y;
    any |= row.x;
  }
  s.known_anywhere = __reduce_or_sync(kAllLanes, any);
}

// Interpolates a column of logits, left or right of the span, along y and z.
template <typename Logit>
__device__ __forceinline__ float column(const Logit* logits, const Span& s, int shift, bool volume) {
  const float near_y = load_number(logits + s.corners[0] + shift), far_y = load_number(logits + s.corners[1] + shift);
  const float near = __fmaf_rn(s.weight_y, far_y, (1.0f - s.weight_y) * near_y);
  if (!volume) return near;
  const float near_z = load_number(logits + s.corners[2] + shift), far_z = load_number(logits + s.corners[3] + shift);
  const float far = __fmaf_rn(s.weight_y, far_z, (1.0f - s.weight_y) * near_z);
  return __fmaf_rn(s.weight_z, far, (1.0f - s.weight_z) * near);
}

// The losses of one organ on a span, and its gradients with respect to the two columns.
struct SpanResult {
  float loss, left, right;
};

template <typename Logit>
__device__ __forceinline__ SpanResult span_losses(const Logit* logits, const Span& s, int bit, bool volume) {
  SpanResult result = {0.0f, 0.0f, 0.0f};
  if (s.count == 0) return result;
  const float a = column(logits, s, 0, volume), b = column(logits, s, s.right, volume);
  LossSum sum;
#pragma unroll
  for (int i = 0; i < kSpan; ++i) {
    if (i >= s.count) break;
    const float t = __fmaf_rn(static_cast<float>(i), s.step, s.first), rest = 1.0f - t;
    const float u = __fmaf_rn(t, b, rest * a);
    const float slope = masked_bce<Logit>(u, sign_where(s.positive[i], bit), ones_where(s.known[i], bit), sum);
    result.left = __fmaf_rn(rest, slope, result.left);
    result.right = __fmaf_rn(t, slope, result.right);
  }
  result.loss = s.owned ? sum.total() : 0.0f;
  return result;
}

// What a row of voxels weighs for a row of logits; `logit` counts from the tile's first logit, `cell` from the cell
// before it. Left of the first and right of the last logit of the image, near and far are the same one.
__device__ __forceinline__ float row_weight(float weight, int cell, int logit, std::int64_t first) {
  if (cell == logit + 1) return 1.0f - weight;                   // the logit is the near one
  if (cell == logit) return first + logit == 0 ? 1.0f : weight;  // the far one; cell -1 has no other
  return 0.0f;
}

// Adds the round's spans to the gradients of one organ: four threads a logit, each takes every fourth row.
__device__ __forceinline__ void gather(const Problem& p, const Tile& t, int rows, const float* left, const float* right,
                                       const Row* about, float* gradient) {
  const int pixels = t.depth * t.height * t.width, spans = t.cells_x * p.parts;
  const int part = threadIdx.x % kLanesPerPixel;
  for (int first = 0; first < pixels; first += kThreads / kLanesPerPixel) {
    const int pixel = first + static_cast<int>(threadIdx.x) / kLanesPerPixel;
    float sum = 0.0f;
    if (pixel < pixels) {
      const int x = pixel % t.width, y = pixel / t.width % t.height, z = pixel / t.width / t.height;
      for (int row = part; row < rows; row += kLanesPerPixel) {
        const Row r = about[row];
        const float weight = row_weight(r.weight_y, r.cell_y, y, t.y) * row_weight(r.weight_z, r.cell_z, z, t.z);
        if (weight == 0.0f) continue;
        float along = 0.0f;
        for (int i = 0; i < p.parts; ++i) {
          const int before = row * spans + x * p.parts + i, after = before + p.parts;
          along += left[after];
          along += t.x + x == 0 ? left[before] : right[before];  // cell -1 reads the first logit as its left one
        }
        sum = __fmaf_rn(weight, along, sum);
      }
    }
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (pixel < pixels && part == 0) gradient[pixel] += sum;
  }
}

template <typename Logit>
__device__ __forceinline__ void store_gradients(const Problem& p, const Tile& t, std::int64_t channel, int organs,
                                                const Shared& shared) {
  const int pixels = t.depth * t.height * t.width;
  const std::int64_t size = p.z.low * p.y.low * p.x.low;
  for (int i = threadIdx.x; i < pixels * organs; i += kThreads) {
    const int pixel = i % pixels, organ = i / pixels;
    const int x = pixel % t.width, y = pixel / t.width % t.height, z = pixel / t.width / t.height;
    const std::int64_t at = ((t.z + z) * p.y.low + t.y + y) * p.x.low + t.x + x;
    store_number(static_cast<Logit*>(p.gradient) + (channel + organ) * size + at, shared.gradient[organ][pixel]);
  }
}

// All organs of a word on the spans of one round.
template <typename Logit>
__device__ __forceinline__ void round_losses(const Problem& p, const Tile& t, std::int64_t channel, int organs,
                                             const Span& s, unsigned wanted, int rows, Shared& shared) {
  const std::int64_t size = p.z.low * p.y.low * p.x.low;
  const bool volume = p.z.high > 1 || p.z.low > 1;
  int turn = 0;
  for (int bit = 0; bit < organs; ++bit) {
    if (!(wanted >> bit & 1u)) continue;  // known on no voxel of the block: the logits are not read
    SpanResult result = {0.0f, 0.0f, 0.0f};
    if (s.known_anywhere >> bit & 1u) {
      const Logit* logits = static_cast<const Logit*>(p.logits) + (channel + bit) * size;
      result = span_losses(logits, s, bit, volume);
      const float sum = warp_sum(result.loss);
      if (lane_of_thread() == 0) shared.losses[warp_of_thread()][bit] += static_cast<double>(sum);
    }
    if (p.gradient == nullptr) continue;
    shared.left[turn][threadIdx.x] = result.left;
    shared.right[turn][threadIdx.x] = result.right;
    __syncthreads();  // one an organ: the next one's spans go to the other half
    gather(p, t, rows, shared.left[turn], shared.right[turn], shared.rows, shared.gradient[bit]);
    turn ^= 1;
  }
}

template <typename Logit>
__global__ void __launch_bounds__(kThreads, 2) upsampled_kernel(Problem p) {
  SMILE_FAST_SHARED(Shared, shared);
  const unsigned tiles = p.tiles_z * p.tiles_y * p.tiles_x, number = blockIdx.x % tiles;
  const std::int64_t image = blockIdx.x / tiles;
  const Tile t = tile_of(p, number);
  const int thread = threadIdx.x, all_rows = t.rows_z * t.rows_y;
  const int rows_at_once = kThreads / (t.cells_x * p.parts);
  const std::uint8_t* labels = p.labels + image * p.z.high * p.y.high * p.x.high;
  for (std::int64_t word = 0; word < p.words; ++word) {
    const std::int64_t organ = word * kWordBits, channel = image * p.organs + organ;
    const int organs = static_cast<int>(p.organs - organ < kWordBits ? p.organs - organ : kWordBits);
    const unsigned exist = organs == kWordBits ? ~0u : (1u << organs) - 1u;
    const std::uint32_t* row = p.table + (image * kLabelValues + thread) * 2 * p.words + word;
    shared.lookup[thread] = make_uint2(__ldg(row), __ldg(row + p.words));
    shared.losses[thread / kWordBits][thread % kWordBits] = 0.0;
    for (int i = thread; i < kWordBits * kMaxPixels; i += kThreads) shared.gradient[i / kMaxPixels][i % kMaxPixels] = 0;
    __syncthreads();
    for (int first = 0; first < all_rows; first += rows_at_once) {
      const int rows = all_rows - first < rows_at_once ? all_rows - first : rows_at_once;
      Span s = span_of(p, t, first, rows, shared.rows);
      decode(labels, shared.lookup, s);
      if (lane_of_thread() == 0) shared.known[warp_of_thread()] = s.known_anywhere;
      __syncthreads();
      unsigned wanted = 0;
      for (int warp = 0; warp < kWarps; ++warp) wanted |= shared.known[warp] & exist;
      round_losses<Logit>(p, t, channel, organs, s, wanted, rows, shared);
      __syncthreads();
    }
    if (thread < organs) {
      double sum = 0.0;
      for (int warp = 0; warp < kWarps; ++warp) sum += shared.losses[warp][thread];
      p.partials[(channel + thread) * tiles + number] = sum;
    }
    if (p.gradient != nullptr) store_gradients<Logit>(p, t, channel, organs, shared);
    __syncthreads();
  }
}

struct Workspace {
  WorkspaceArena arena;
  LabelHistograms histograms;
  double* partials;

  Workspace(void* memory, const MaskedBceUpsampledArguments& a, std::int64_t tiles)
      : arena(memory), histograms(arena, a.batch), partials(arena.take<double>(a.batch * a.organs * tiles)) {}
};

// Cuts the logits into tiles of 7 x 7, or 3 x 5 x 7: with its halo, a row of a tile has 8 cells, which divide a block.
Problem cut(const MaskedBceUpsampledArguments& a) {
  Problem p{};
  p.organs = a.organs;
  p.words = ceil_div(a.organs, kWordBits);
  p.z = axis(a.low.depth, a.high.depth);
  p.y = axis(a.low.height, a.high.height);
  p.x = axis(a.low.width, a.high.width);
  const bool volume = a.low.depth > 1;
  const std::int64_t stride = a.low.width > 0 ? ceil_div(a.high.width, a.low.width) : 1;
  if (stride > kMaxUpsampledStride) throw std::runtime_error("masked_bce_upsampled: too many voxels per logit");
  p.parts = static_cast<int>(ceil_div(stride, kSpan));
  const int widest = kThreads / p.parts - 1;
  p.tile_x = widest < 7 ? widest : 7;
  p.tile_y = volume ? 5 : 7;
  p.tile_z = volume ? 3 : 1;
  p.tiles_x = static_cast<unsigned>(ceil_div(a.low.width, p.tile_x));
  p.tiles_y = static_cast<unsigned>(ceil_div(a.low.height, p.tile_y));
  p.tiles_z = static_cast<unsigned>(ceil_div(a.low.depth, p.tile_z));
  return p;
}

std::int64_t tiles_of(const Problem& p) { return static_cast<std::int64_t>(p.tiles_z) * p.tiles_y * p.tiles_x; }

template <typename Logit>
void queue(const Problem& p, std::int64_t batch, void* stream) {
  launch("masked_bce_upsampled", upsampled_kernel<Logit>, batch * tiles_of(p), kThreads, stream, p);
}

}  // namespace

std::size_t masked_bce_upsampled_cuda_workspace(const MaskedBceUpsampledArguments& a) {
  return Workspace(nullptr, a, tiles_of(cut(a))).arena.bytes();
}

void masked_bce_upsampled_cuda(const MaskedBceUpsampledArguments& a, void* workspace, void* stream) {
  Problem p = cut(a);
  const Workspace work(workspace, a, tiles_of(p));
  p.logits = a.logits;
  p.labels = a.labels;
  p.table = a.table;
  p.gradient = a.gradient;
  p.partials = work.partials;
  count_labels(a.labels, a.table, a.batch, a.organs, a.high.depth * a.high.height * a.high.width, work.histograms,
               stream);
  switch (a.dtype) {
    case DType::float32:
      queue<float>(p, a.batch, stream);
      break;
    case DType::bfloat16:
      queue<BFloat16>(p, a.batch, stream);
      break;
    case DType::float16:
      queue<Float16>(p, a.batch, stream);
      break;
  }
  sum_channels(work.partials, tiles_of(p), work.histograms, a.table, a.batch, a.organs, a.sums, a.counts, stream);
}

}  // namespace smile_fast
