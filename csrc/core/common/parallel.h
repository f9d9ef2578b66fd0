// parallel_for: the one place that knows how work is spread over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#ifndef _OPENMP
#include <thread>
#include <vector>
#endif

namespace smile_fast {

// Call body(item) for every item in [0, items), on at most `threads` threads, in any order. What a body throws is
// thrown here, after all others have ended; items that have not begun by then are left out.
//
// With OpenMP the threads are those of the process's pool, which torch shares. Without it, they are started here:
// that is for builds that lack OpenMP, and for ThreadSanitizer, which does not see into libgomp.
template <typename Body>
void parallel_for(std::int64_t items, int threads, const Body& body) {
  if (threads <= 1 || items <= 1) {  // libgomp would start threads anew for a region inside of another
    for (std::int64_t item = 0; item < items; ++item) body(item);
    return;
  }
  std::atomic<bool> failed{false};
  std::exception_ptr failure;  // of the thread that has set `failed`
  const auto guarded = [&](std::int64_t item) {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      body(item);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (std::int64_t item = 0; item < items; ++item) guarded(item);
#else
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t item = next++; item < items; item = next++) guarded(item);
  };
  {
    std::vector<std::jthread> helpers;
    const auto wanted = std::min<std::int64_t>(threads, items) - 1;
    for (std::int64_t helper = 0; helper < wanted; ++helper) helpers.emplace_back(work);
    work();
  }
#endif
  if (failure) std::rethrow_exception(failure);
}

}  // namespace smile_fast
