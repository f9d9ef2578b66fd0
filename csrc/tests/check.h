// The test harness: count failures, print the first ones, exit with 1 if there were any.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

namespace smile_fast::testing {

inline int checks = 0;
inline int failures = 0;

inline void check(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

// The larger of two errors; NaN is the largest (std::max would lose it).
inline double worse(double a, double b) {
  return std::isnan(b) ? std::numeric_limits<double>::infinity() : a < b ? b : a;
}

inline int finish() {
  std::printf("%d checks, %d failures\n", checks, failures);
  return checks == 0 || failures != 0;
}

}  // namespace smile_fast::testing
