// select_top_fraction on segments that are long enough to be sampled and to be shared by several threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "core/select_top_fraction/key_search.h"
#include "core/select_top_fraction/select_top_fraction.h"
#include "core/select_top_fraction/select_top_fraction_kernel.h"
#include "core/select_top_fraction/select_top_fraction_sample.h"

namespace smile_fast {

// Room for entries, shared by the threads that fill it; only what is used is ever touched.
class EntryPool {
 public:
  explicit EntryPool(std::int64_t capacity);

  // Memory for `count` entries, or null if they do not fit.
  Entry* take(std::int64_t count);

 private:
  struct Free {
    void operator()(Entry* entries) const;
  };

  std::int64_t capacity_;
  std::atomic<std::int64_t> used_{0};
  std::unique_ptr<Entry[], Free> entries_;
};

class LargeSegments {
 public:
  LargeSegments(const SelectTopFractionArguments& arguments, int threads) : a_(arguments), threads_(threads) {}

  // gamma is in (0, 1].
  void add(std::int64_t begin, std::int64_t end, double gamma);

  // Writes the selection of all voxels of these segments.
  void select();

 private:
  struct Block {
    BlockCounts counts;
    std::uint32_t ties;  // candidates that tie with the threshold; later, how many of them are selected
    Entry* entries;      // the candidates inside the bracket; null if there are none or they are not kept

    std::span<const Entry> listed() const { return {entries, entries == nullptr ? 0 : counts.inside}; }
  };
  struct Segment {
    std::int64_t begin, end;
    double gamma;
    Search search;  // for the key of the lowest selected score
    std::vector<Block> blocks;
  };
  using Segments = std::vector<Segment*>;
  enum class Outcome { selected, listed, tied, missed };

  template <typename Body>
  void for_chunks(const Segments& segments, std::int64_t blocks, const Body& body) const;
  template <typename CountBlock>
  void narrow(const Segments& segments, const CountBlock& count_block) const;

  ScoreBlock voxels_of(const Segment& segment, std::int64_t index) const;
  void guess();
  void scan(const Segments& segments);
  Outcome outcome(Segment& segment) const;
  void narrow_by_scores(const Segments& segments) const;
  void narrow_by_entries(const Segments& segments) const;
  void select_inside(const Segments& segments) const;

  const SelectTopFractionArguments& a_;
  int threads_;
  std::vector<Segment> segments_;
  std::vector<std::unique_ptr<EntryPool>> pools_;
};

}  // namespace smile_fast
