// parallel_for: the one place that knows how work is spread over threads.
#pragma once

#include <cstdint>

#ifndef _OPENMP
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>
#endif

namespace smile_fast {

// Call body(item) for every item in [0, items), on at most `threads` threads, in any order. The body must not throw.
//
// With OpenMP the threads are those of the process's pool, which torch shares. Without it, they are started here:
// that is for builds that lack OpenMP, and for ThreadSanitizer, which does not see into libgomp.
template <typename Body>
void parallel_for(std::int64_t items, int threads, const Body& body) {
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && items > 1)
  for (std::int64_t item = 0; item < items; ++item) body(item);
#else
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t item = next++; item < items; item = next++) body(item);
  };
  std::vector<std::jthread> helpers;
  const auto wanted = std::min<std::int64_t>(threads, items) - 1;
  for (std::int64_t helper = 0; helper < wanted; ++helper) helpers.emplace_back(work);
  work();
#endif
}

}  // namespace smile_fast
