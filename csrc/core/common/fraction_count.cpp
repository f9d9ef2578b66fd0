#include "core/common/fraction_count.h"

#include <algorithm>
#include <cmath>

namespace smile_fast {

std::int64_t fraction_count(double gamma, std::int64_t count) {
  const double product = (gamma > 0 ? std::min(gamma, 1.0) : 0.0) * static_cast<double>(count);
  const double nearest = std::nearbyint(product);
  const bool integral = std::abs(product - nearest) <= kIntegerTolerance * nearest;
  return std::min(static_cast<std::int64_t>(integral ? nearest : std::ceil(product)), count);
}

}  // namespace smile_fast
