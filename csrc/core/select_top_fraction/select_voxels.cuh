// Scores and candidates as a thread reads them: four voxels at a time, keys in the order of the scores.
#pragma once

#include "core/common/cuda_formats.cuh"
#include "core/select_top_fraction/score_keys.h"
#include "core/select_top_fraction/select_segments.cuh"

namespace smile_fast::cuda::selection {

constexpr int kNoKey = -0x7fffffff - 1;  // below all keys

// The keys of score_keys.h on the device: NaN has the lowest one, -0 and +0 the same.
template <typename Score>
struct Keys {
  static constexpr int kInfinity = ScoreFormat<Score>::infinity;
  static constexpr int kHighest = sizeof(Score) == 4 ? 0x7fffffff : 0x7fff;
  static constexpr int kNan = -kHighest;

  static __device__ __forceinline__ int of_bits(unsigned bits) {
    const int magnitude = static_cast<int>(bits & kHighest);
    if (magnitude > kInfinity) return kNan;
    return (bits >> (8 * sizeof(Score) - 1) & 1u) != 0 ? -magnitude : magnitude;
  }
  static __device__ __forceinline__ int load(const void* scores, std::int64_t voxel) {
    using Bits = typename Format<Score>::Bits;
    return of_bits(__ldg(static_cast<const Bits*>(scores) + voxel));
  }
  // The lowest number whose key is not below this one; NaN, to which nothing compares, where there is none.
  static __device__ __forceinline__ float number_from(int key) {
    if (key > kInfinity) return __uint_as_float(0x7fc00000u);
    if (key < -kInfinity) key = -kInfinity;
    return Format<Score>::number(key < 0 ? static_cast<unsigned>(-key) | (static_cast<unsigned>(kHighest) + 1)
                                         : static_cast<unsigned>(key));
  }
};

// Which keys are above and which reach a bracket, as comparisons of numbers: one instruction each.
struct Limits {
  float above, low;
  bool from_nan;  // NaN reaches it, too

  __device__ __forceinline__ bool is_above(float score) const { return score >= above; }
  __device__ __forceinline__ bool reaches(float score) const { return score >= low || from_nan; }
};

template <typename Score>
__device__ __forceinline__ Limits limits_of(int low, int high) {
  return {Keys<Score>::number_from(high < Keys<Score>::kHighest ? high + 1 : high), Keys<Score>::number_from(low),
          low == Keys<Score>::kNan};
}

// Four neighbouring scores.
template <typename Score>
struct Quad {
  static constexpr int kWords = sizeof(Score);
  unsigned words[kWords];

  __device__ __forceinline__ unsigned bits(int j) const {
    if constexpr (sizeof(Score) == 4) return words[j];
    return words[j / 2] >> (16 * (j % 2)) & 0xffffu;
  }
  __device__ __forceinline__ float number(int j) const { return Format<Score>::number(bits(j)); }
};

// Bit 8 * j: whether byte j of a word is not 0.
__device__ __forceinline__ unsigned nonzero_bytes(unsigned word) {
  return (((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) >> 7 & 0x01010101u;
}

// The bytes of four voxels, those outside of the range 0. kWhole: all are inside, and accesses are aligned.
template <bool kWhole>
__device__ __forceinline__ unsigned load_bytes(const std::uint8_t* bytes, std::int64_t at, const Range& range) {
  if constexpr (kWhole) return __ldcs(reinterpret_cast<const unsigned*>(bytes + at));
  unsigned word = 0;
  for (int j = 0; j < kQuad; ++j)
    if (at + j >= range.begin && at + j < range.end) word |= static_cast<unsigned>(bytes[at + j]) << (8 * j);
  return word;
}

template <bool kWhole>
__device__ __forceinline__ void store_bytes(std::uint8_t* bytes, std::int64_t at, const Range& range, unsigned word) {
  if constexpr (kWhole) {
    __stcs(reinterpret_cast<unsigned*>(bytes + at), word);
  } else {
    for (int j = 0; j < kQuad; ++j)
      if (at + j >= range.begin && at + j < range.end) bytes[at + j] = static_cast<std::uint8_t>(word >> (8 * j));
  }
}

// The scores of four voxels of which at least one is a candidate; scores of others may be left out.
template <typename Score, bool kWhole>
__device__ __forceinline__ Quad<Score> load_quad(const void* scores, std::int64_t at, unsigned flags) {
  using Bits = typename Format<Score>::Bits;
  const Bits* from = static_cast<const Bits*>(scores) + at;
  Quad<Score> quad = {};
  if (flags == 0) return quad;
  if constexpr (!kWhole) {
    for (int j = 0; j < kQuad; ++j)
      if ((flags >> (8 * j) & 1u) != 0)
        quad.words[j * sizeof(Score) / 4] |= __ldg(from + j) << (sizeof(Score) == 4 ? 0 : 16 * (j % 2));
  } else if constexpr (sizeof(Score) == 4) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
    quad = {{words.x, words.y, words.z, words.w}};
  } else {
    const uint2 words = __ldcs(reinterpret_cast<const uint2*>(from));
    quad.words[0] = words.x;
    quad.words[1] = words.y;
  }
  return quad;
}

// Calls body(quad's number, its first voxel, flags, scores) for the thread's quads of a stretch; flags has bit 8 * j
// set where voxel j is a candidate in the range. Of a whole stretch all 8 loads of candidates are on their way before
// the first is used, then 4 of scores; the others are few. Scores of quads without candidates are not read.
template <typename Score, bool kWhole, typename Body>
__device__ __forceinline__ void for_quads(const Problem& p, std::int64_t own, const Range& range, const Body& body) {
  if constexpr (!kWhole) {
#pragma unroll 1
    for (int q = 0; q < kQuads; ++q) {
      const std::int64_t at = own + q * kQuadStride;
      const unsigned flags = nonzero_bytes(load_bytes<false>(p.candidates, at, range));
      body(q, at, flags, load_quad<Score, false>(p.scores, at, flags));
    }
  } else {
    constexpr int kAtOnce = 4;
    unsigned flags[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
      flags[q] = nonzero_bytes(load_bytes<true>(p.candidates, own + q * kQuadStride, range));
#pragma unroll
    for (int first = 0; first < kQuads; first += kAtOnce) {
      Quad<Score> quads[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        quads[i] = load_quad<Score, true>(p.scores, own + (first + i) * kQuadStride, flags[first + i]);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) body(first + i, own + (first + i) * kQuadStride, flags[first + i], quads[i]);
    }
  }
}

// Calls body(quad's number, its first voxel, bytes) for the thread's quads of a stretch, of candidates or of a
// selection.
template <bool kWhole, typename Body>
__device__ __forceinline__ void for_bytes(const std::uint8_t* bytes, std::int64_t own, const Range& range,
                                          const Body& body) {
  if constexpr (!kWhole) {
#pragma unroll 1
    for (int q = 0; q < kQuads; ++q)
      body(q, own + q * kQuadStride, load_bytes<false>(bytes, own + q * kQuadStride, range));
  } else {
    unsigned words[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) words[q] = load_bytes<true>(bytes, own + q * kQuadStride, range);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) body(q, own + q * kQuadStride, words[q]);
  }
}

// What a range that is a whole stretch has, and accesses of several voxels need.
__device__ __forceinline__ bool is_whole(const Problem& p, const Range& range) {
  return p.aligned && range.end - range.begin == kItem;
}

// Calls visit(valid, voxel, key) for each bit of the threads' masks; all lanes of a warp at a time. The scores have
// been read just before.
template <typename Score, typename Visit>
__device__ __forceinline__ void for_open(const Problem& p, std::int64_t own, unsigned open, const Visit& visit) {
  while (__ballot_sync(kAllLanes, open != 0) != 0) {
    const bool valid = open != 0;
    const int bit = valid ? 31 - __clz(static_cast<int>(open)) : 0;
    const std::int64_t voxel = own + place_of(bit);
    const int key = valid ? Keys<Score>::load(p.scores, voxel) : 0;
    open &= ~(1u << bit);
    visit(valid, voxel, key);
  }
}

}  // namespace smile_fast::cuda::selection
