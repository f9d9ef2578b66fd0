// Compiled once per CPU capability, see core/common/cpu_capability.h.
#include "core/masked_bce/masked_bce_kernel.h"

#include "core/masked_bce/bce.h"
#include "core/masked_bce/label_counts.h"
#include "core/masked_bce/supervision.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {
namespace {

// Of an organ, before the next one's turn: up to 3.5 KB of float32 logits. Eight runs would be more factors than a
// double holds; with 4 lanes, seven would be 112 losses a lane in single precision, and an error near its bound of
// 1e-7.
constexpr int kRunsAtOnce = kLanes < 8 ? 4 : 7;
constexpr int kChunk = kRunsAtOnce * kRun;  // voxels whose losses are summed in single precision
constexpr int kWays = 2;                    // vectors in flight, each adding to a sum of its own
static_assert(kChunk / kLanes / kWays <= kLossVectors && kChunk <= kLossFactors);

// What becomes of the gradient; `overwriting`: what has been read stays in the caches, what need not be read does not
// go there.
enum class Gradient { none, cached, overwriting, streamed };

template <Gradient kGradient, typename Logit>
SMILE_FAST_INLINE void store_gradient(Logit* gradient, Floats value) {
  if constexpr (kGradient == Gradient::streamed)
    store<Store::streamed>(gradient, value);
  else if constexpr (kGradient != Gradient::none)
    store(gradient, value);
}

// One vector: adds its losses to `sum` and stores its gradient. kMixed = false: every voxel is known and none is
// positive, and the words are not read.
template <bool kMixed, Gradient kGradient, typename Logit>
SMILE_FAST_INLINE void vector_losses(const Logit* logits, Logit* gradient, float divisor, const Run& run, int voxel,
                                     int bit, LossSum& sum) {
  const Words flip = kMixed ? sign_where(load_as<Words>(run.positive + voxel), bit) : Words{};
  const Words keep = kMixed ? ones_where(load_as<Words>(run.known + voxel), bit) : ~Words{};
  store_gradient<kGradient>(gradient, bce(load(logits), flip, keep, sum, divisor));
}

// One organ on `length` voxels: of one run, or of several that are plain, whose words are not read. `next` is what will
// be read later, and every line of it is asked for: it is too far away for the hardware to guess, since the next
// organ's channel lies a whole image further.
template <bool kMixed, Gradient kGradient, typename Logit>
SMILE_FAST_INLINE void losses(const Logit* logits, Logit* gradient, float divisor, const Run& run, int length, int bit,
                              const Logit* next, LossSum (&parts)[kWays]) {
  int voxel = 0;
  for (; voxel + kWays * kLanes <= length; voxel += kWays * kLanes) {
    for (int way = 0; way < kWays; ++way) {
      const int at = voxel + way * kLanes;
      if (way * kLanes * sizeof(Logit) % kStreamAlignment == 0)
        __builtin_prefetch(next + at, kGradient == Gradient::cached || kGradient == Gradient::overwriting);
      Logit* const stored = kGradient == Gradient::none ? nullptr : gradient + at;
      vector_losses<kMixed, kGradient>(logits + at, stored, divisor, run, at, bit, parts[way]);
    }
  }
  if constexpr (kMixed) {
    for (; voxel < length; voxel += kLanes) {  // the end, through a buffer: behind the last voxel, nothing is known
      const std::size_t bytes = smaller(length - voxel, kLanes) * sizeof(Logit);
      Logit buffer[kLanes] = {};
      memcpy(buffer, logits + voxel, bytes);
      constexpr Gradient kind = kGradient == Gradient::none ? Gradient::none : Gradient::cached;
      vector_losses<kMixed, kind>(buffer, buffer, divisor, run, voxel, bit, parts[0]);
      if constexpr (kGradient != Gradient::none) memcpy(gradient + voxel, buffer, bytes);
    }
  }
}

template <Gradient kGradient, typename Logit>
SMILE_FAST_INLINE void clear_gradient(Logit* gradient, int length) {
  if constexpr (kGradient == Gradient::none) return;
  if (kGradient != Gradient::cached && length % kRun == 0) {
    for (int voxel = 0; voxel < length; voxel += kLanes) store<Store::streamed>(gradient + voxel, Floats{});
  } else {
    memset(static_cast<void*>(gradient), 0, length * sizeof(Logit));
  }
}

// What an organ asks of a run: nothing, its logits alone, or its words, too.
enum class Kind { skipped, plain, mixed };

SMILE_FAST_INLINE Kind kind_of(const Run& run, int bit) {
  const auto set = [bit](std::uint32_t word) { return (word >> bit & 1u) != 0; };
  if (!set(run.known_anywhere)) return Kind::skipped;
  return set(run.known_everywhere) && !set(run.positive_anywhere) ? Kind::plain : Kind::mixed;
}

// One organ on `length` voxels: neighbouring runs of one kind at a time, since every loop costs 60 cycles to get going.
template <Gradient kGradient, typename Logit>
SMILE_FAST_INLINE void organ_on_chunk(const Logit* logits, Logit* gradient, float divisor, const Run* runs, int length,
                                      int bit, const Logit* next, RunningLoss& sum) {
  LossSum parts[kWays];
  bool known = false;
  for (int begin = 0; begin < length;) {
    const Run& run = runs[begin / kRun];
    const Kind kind = kind_of(run, bit);
    int end = begin + kRun;
    if (kind != Kind::mixed)  // the words of two runs do not lie side by side
      while (end < length && kind_of(runs[end / kRun], bit) == kind) end += kRun;
    end = end < length ? end : length;
    Logit* const stored = kGradient == Gradient::none ? nullptr : gradient + begin;
    if (kind == Kind::skipped)  // the logits need not be read
      clear_gradient<kGradient>(stored, end - begin);
    else if (kind == Kind::plain)
      losses<false, kGradient>(logits + begin, stored, divisor, run, end - begin, bit, next + begin, parts);
    else
      losses<true, kGradient>(logits + begin, stored, divisor, run, end - begin, bit, next + begin, parts);
    known = known || kind != Kind::skipped;
    begin = end;
  }
  if (known) sum.add(parts);
}

// The next organ whose logits will be read; where all others are skipped, the first one, of the next chunk.
SMILE_FAST_INLINE int next_known(std::uint32_t known, int bit) {
  const std::uint32_t later = known & ~((2u << bit) - 1), candidates = later != 0 ? later : known;
  return candidates == 0 ? 0 : __builtin_ctz(candidates);
}

// 32 organs, from `organ` on, on the voxels [begin, end) of one image.
template <Gradient kGradient, typename Logit>
SMILE_FAST_INLINE void word_of_organs(const MaskedBceArguments& a, std::int64_t image, std::int64_t begin,
                                      std::int64_t end, std::int64_t organ, float divisor, double* sums) {
  const std::int64_t words = (a.organs + kWordBits - 1) / kWordBits;
  const std::uint32_t* rows = a.table + image * kLabelValues * 2 * words + organ / kWordBits;
  const int organs = static_cast<int>(smaller(kWordBits, a.organs - organ));
  RunningLoss losses[kWordBits];
  for (std::int64_t first = begin; first < end; first += kChunk) {
    const int length = static_cast<int>(smaller(kChunk, end - first));
    Run runs[kRunsAtOnce];
    std::uint32_t known = 0;
    for (int voxel = 0; voxel < length; voxel += kRun) {
      const int voxels = length - voxel < kRun ? length - voxel : kRun;
      decode(a.labels + image * a.voxels + first + voxel, voxels, rows, words, runs[voxel / kRun]);
      known |= runs[voxel / kRun].known_anywhere;
    }
    const std::int64_t offset = (image * a.organs + organ) * a.voxels + first;
    const Logit* logits = static_cast<const Logit*>(a.logits) + offset;
    Logit* gradient = kGradient == Gradient::none ? nullptr : static_cast<Logit*>(a.gradient) + offset;
    for (int bit = 0; bit < organs; ++bit) {
      const Logit* next = logits + next_known(known, bit) * a.voxels;
      if (next <= logits + bit * a.voxels) next += kChunk;
      organ_on_chunk<kGradient>(logits + bit * a.voxels, gradient, divisor, runs, length, bit, next, losses[bit]);
      gradient += kGradient == Gradient::none ? 0 : a.voxels;
    }
  }
  for (int bit = 0; bit < organs; ++bit) sums[organ + bit] = losses[bit].total();
}

constexpr std::int64_t kStreamedBytes = 1 << 22;  // a larger gradient has left the caches when it is read

// Whether the gradient may go past the caches: it is large, and every channel of it starts where a line does.
template <typename Logit>
SMILE_FAST_INLINE bool streams(const MaskedBceArguments& a) {
  const std::int64_t channel_bytes = a.voxels * static_cast<std::int64_t>(sizeof(Logit));
  return a.batch * a.organs * channel_bytes > kStreamedBytes && channel_bytes % kStreamAlignment == 0 &&
         reinterpret_cast<std::uintptr_t>(a.gradient) % kStreamAlignment == 0;
}

template <Gradient kGradient, typename Logit>
SMILE_FAST_INLINE void all_organs(const MaskedBceArguments& a, std::int64_t image, std::int64_t begin, std::int64_t end,
                                  float divisor, double* sums) {
  for (std::int64_t organ = 0; organ < a.organs; organ += kWordBits)
    word_of_organs<kGradient, Logit>(a, image, begin, end, organ, divisor, sums);
  if constexpr (kGradient != Gradient::none && kGradient != Gradient::cached) finish_streams();
}

template <typename Logit>
SMILE_FAST_INLINE void by_gradient(const MaskedBceArguments& a, std::int64_t image, std::int64_t begin,
                                   std::int64_t end, float divisor, double* sums) {
  if (a.gradient == nullptr) return all_organs<Gradient::none, Logit>(a, image, begin, end, divisor, sums);
  if (!streams<Logit>(a)) return all_organs<Gradient::cached, Logit>(a, image, begin, end, divisor, sums);
  if (a.gradient == a.logits) return all_organs<Gradient::overwriting, Logit>(a, image, begin, end, divisor, sums);
  all_organs<Gradient::streamed, Logit>(a, image, begin, end, divisor, sums);
}

}  // namespace

void masked_bce_kernel(const MaskedBceArguments& a, std::int64_t image, std::int64_t begin, std::int64_t end,
                       float divisor, double* sums) {
  switch (a.dtype) {
    case DType::float32:
      return by_gradient<float>(a, image, begin, end, divisor, sums);
    case DType::bfloat16:
      return by_gradient<BFloat16>(a, image, begin, end, divisor, sums);
    case DType::float16:
      return by_gradient<Float16>(a, image, begin, end, divisor, sums);
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
