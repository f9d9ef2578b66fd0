// Where the threshold of a segment probably lies, from a sample of its scores.
#pragma once

#include <cstdint>
#include <vector>

#include "core/select_top_fraction/score_keys.h"
#include "core/select_top_fraction/select_top_fraction.h"

namespace smile_fast {

struct Guess {
  Bracket bracket;
  std::int64_t inside;  // how many candidates are probably inside, to be listed; 0 for a single key
};

// The sample of one segment, taken in parts that may be drawn on different threads. Which voxels it looks at depends
// on the segment's place alone.
class ScoreSample {
 public:
  static constexpr int kParts = 8;
  static constexpr std::int64_t kSpot = 16;  // voxels looked at together: a cache line of float32 scores

  ScoreSample(std::int64_t begin, std::int64_t end);

  std::int64_t spots() const { return spots_; }

  // The first voxel of a spot: somewhere in its share of the segment, elsewhere in every round.
  std::int64_t spot(std::int64_t index, int round) const;

  void draw(const SelectTopFractionArguments& arguments, int part);

  // A bracket that holds the threshold of share gamma, very probably.
  Guess guess(DType dtype, double gamma);

  static constexpr int kRounds = 4;  // only the first one where candidates are few

 private:
  struct Part {
    std::vector<std::int32_t> keys;
    std::int64_t found = 0;  // candidates in the spots of the first round
    std::int64_t spots_with_candidates = 0;
  };

  void draw(const SelectTopFractionArguments& arguments, int part, int round, std::int64_t step);

  std::int64_t begin_, end_, spots_;
  Part parts_[kParts];
};

}  // namespace smile_fast
