// Memory that is filled for the first time: one page fault for 2 MB instead of one for 4 KB.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace smile_fast {

constexpr std::size_t kHugePage = std::size_t{1} << 21;

// Asks for huge pages where [begin, begin + bytes) holds whole ones; a hint, which changes no contents. Without it,
// the faults of a fresh result of 79 MB take three times as long as reading the 315 MB that it is computed from.
inline void advise_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = (address + kHugePage - 1) & ~(kHugePage - 1);
  const std::uintptr_t last = (address + bytes) & ~(kHugePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace smile_fast
