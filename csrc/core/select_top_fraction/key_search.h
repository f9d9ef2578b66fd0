// The search for the key of a rank by histograms, and the selection of listed candidates by what it finds.
#pragma once

#include <cstdint>
#include <span>

#include "core/select_top_fraction/score_keys.h"

namespace smile_fast {

// The search for the key of rank `rank` (1 is the highest) among the `population` keys of a bracket.
struct Search {
  Bracket bracket;
  std::int64_t rank;
  std::int64_t population;

  // Goes on in the bin that holds the rank, given how many keys each bin has.
  template <typename Count>
  void narrow(const Bins& bins, const Count* counts) {
    std::uint32_t bin = bins.count() - 1;
    while (bin > 0 && rank > static_cast<std::int64_t>(counts[bin])) rank -= static_cast<std::int64_t>(counts[bin--]);
    population = static_cast<std::int64_t>(counts[bin]);
    const std::uint32_t low = static_cast<std::uint32_t>(bracket.low) + (bin << bins.shift);
    const std::uint32_t rest = static_cast<std::uint32_t>(bracket.high) - low, width = (1u << bins.shift) - 1;
    bracket = {static_cast<std::int32_t>(low), static_cast<std::int32_t>(low + (rest < width ? rest : width))};
  }
};

inline void count_entries(std::span<const Entry> entries, const Bins& bins, std::uint32_t* counts) {
  for (const Entry& entry : entries)
    if (bins.holds(entry.key)) ++counts[bins.bin(entry.key)];
}

// Selects the entries above a threshold, and the first `ties` of those that equal it.
inline void select_entries(std::span<const Entry> entries, std::int32_t threshold, std::int64_t ties,
                           std::uint8_t* selection) {
  for (const Entry& entry : entries) {
    const bool tied = entry.key == threshold && ties > 0;
    ties -= tied;
    if (tied || entry.key > threshold) selection[entry.offset] = 1;
  }
}

}  // namespace smile_fast
