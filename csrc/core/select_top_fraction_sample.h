// Where the threshold of a segment probably lies, from a sample of its scores.
#pragma once

#include <cstdint>
#include <vector>

#include "core/score_keys.h"
#include "core/select_top_fraction.h"

namespace smile_fast {

struct Guess {
  Bracket bracket;
  std::int64_t inside;  // how many candidates are probably inside
};

// The sample of one segment, taken in parts that may be drawn on different threads. Which voxels it looks at depends
// on the segment's place alone.
class ScoreSample {
 public:
  static constexpr int kParts = 8;

  ScoreSample(std::int64_t begin, std::int64_t end);

  void draw(const SelectTopFractionArguments& arguments, int part);

  // A bracket that holds the threshold of share gamma, very probably.
  Guess guess(DType dtype, double gamma);

 private:
  struct Part {
    std::vector<std::int32_t> keys;
    std::int64_t candidates = 0;  // in the spots that were looked at; not all of them have their key taken
    std::int64_t spots_with_candidates = 0;
  };

  std::int64_t begin_, end_, spots_;
  Part parts_[kParts];
};

}  // namespace smile_fast
