// The 16-bit formats on every value, against their definition in double precision.
#include "core/common/float_formats.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "check.h"

namespace {

using smile_fast::BFloat16;
using smile_fast::Float16;
using smile_fast::from_float;
using smile_fast::to_float;
using smile_fast::testing::check;

// The value of a float16, from its definition.
double half_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

void widening_and_narrowing_are_inverse() {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto stored = static_cast<std::uint16_t>(bits);
    const float half = to_float(Float16{stored});
    const std::string name = "16-bit pattern " + std::to_string(bits);
    if (std::isnan(half_value(stored))) {
      check(std::isnan(half) && std::isnan(to_float(from_float<Float16>(half))), "float16 NaN: " + name);
    } else {
      check(static_cast<double>(half) == half_value(stored), "float16 value: " + name);
      check(from_float<Float16>(half).bits == stored, "float16 round trip: " + name);
    }
    const float brain = to_float(BFloat16{stored});
    const bool same = from_float<BFloat16>(brain).bits == stored;
    check(std::isnan(brain) ? std::isnan(to_float(from_float<BFloat16>(brain))) : same, "bfloat16: " + name);
  }
}

// Between two neighbours, the nearer one is right; in the middle, the even one.
template <typename Narrow>
void narrowing_rounds_to_nearest_even(std::uint16_t infinity) {
  for (std::uint16_t bits = 0; bits + 1 < infinity; ++bits) {
    const float low = to_float(Narrow{bits}), high = to_float(Narrow{static_cast<std::uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;
    const std::uint16_t even = bits % 2 == 0 ? bits : bits + 1;
    const std::string name = " of " + std::to_string(bits);
    check(from_float<Narrow>(middle).bits == even, "tie" + name);
    check(from_float<Narrow>(-middle).bits == (even | 0x8000), "negative tie" + name);
    check(from_float<Narrow>(std::nextafter(middle, low)).bits == bits, "just below the middle" + name);
    check(from_float<Narrow>(std::nextafter(middle, high)).bits == bits + 1, "just above the middle" + name);
  }
}

}  // namespace

int main() {
  widening_and_narrowing_are_inverse();
  narrowing_rounds_to_nearest_even<Float16>(0x7c00);
  narrowing_rounds_to_nearest_even<BFloat16>(0x7f80);
  return smile_fast::testing::finish();
}
