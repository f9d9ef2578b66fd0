// How many of some candidates a share of them is.
#pragma once

#include <cstdint>

namespace smile_fast {

constexpr double kIntegerTolerance = 1e-12;  // relative; that of the reference

// ceil(gamma * count), at most count, where a float64 product within kIntegerTolerance of an integer is that integer.
std::int64_t fraction_count(double gamma, std::int64_t count);

}  // namespace smile_fast
