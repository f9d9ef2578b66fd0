#include "core/select_top_fraction/select_top_fraction_large.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "core/common/cpu_capability.h"
#include "core/common/fraction_count.h"
#include "core/common/huge_pages.h"
#include "core/common/parallel.h"

namespace smile_fast {
namespace {

constexpr std::int64_t kBlock = 1 << 13;           // voxels: their entries, if all are candidates, fill 64 KB of stack
constexpr std::int64_t kScanBlocks = 8;            // of one work item that reads scores
constexpr std::int64_t kSearchBlocks = 1024;       // of one work item that has bins of its own
constexpr std::int64_t kStreamedLength = 1 << 22;  // voxels: a selection of 4 MB
constexpr int kBinBits = 11;                       // 8 KB of bins
constexpr std::int64_t kSlackShare = 64;           // room for a 64th of the voxels more than the sample promises
constexpr std::int64_t kListedShare = 16;          // a bracket with fewer than a 16th of the voxels is worth a list

std::int64_t blocks_of(std::int64_t voxels, std::int64_t block) { return (voxels + block - 1) / block; }

}  // namespace

EntryPool::EntryPool(std::int64_t capacity)
    : capacity_(capacity), entries_(static_cast<Entry*>(::operator new(capacity * sizeof(Entry)))) {
  advise_huge_pages(entries_.get(), capacity * sizeof(Entry));
}

void EntryPool::Free::operator()(Entry* entries) const { ::operator delete(entries); }

Entry* EntryPool::take(std::int64_t count) {
  const std::int64_t first = used_.fetch_add(count, std::memory_order_relaxed);
  return first + count <= capacity_ ? entries_.get() + first : nullptr;
}

void LargeSegments::add(std::int64_t begin, std::int64_t end, double gamma) {
  segments_.push_back({begin, end, gamma, {}, std::vector<Block>(blocks_of(end - begin, kBlock))});
}

ScoreBlock LargeSegments::voxels_of(const Segment& segment, std::int64_t index) const {
  const std::int64_t begin = segment.begin + index * kBlock;
  const std::int64_t size = element_size(a_.dtype);
  return {a_.dtype, static_cast<const char*>(a_.scores) + begin * size, a_.candidates + begin, a_.selection + begin,
          static_cast<std::int32_t>(std::min(kBlock, segment.end - begin))};
}

// Calls body(segment, first block, last block, number of the chunk) for chunks of so many blocks, on all threads.
template <typename Body>
void LargeSegments::for_chunks(const Segments& segments, std::int64_t blocks, const Body& body) const {
  std::vector<std::int64_t> ends;  // of the segments, in chunks
  std::int64_t chunks = 0;
  for (const Segment* segment : segments)
    ends.push_back(chunks += blocks_of(static_cast<std::int64_t>(segment->blocks.size()), blocks));
  parallel_for(chunks, threads_, [&](std::int64_t chunk) {
    const auto index = std::upper_bound(ends.begin(), ends.end(), chunk) - ends.begin();
    Segment& segment = *segments[index];
    const std::int64_t first = (chunk - (index == 0 ? 0 : ends[index - 1])) * blocks;
    body(segment, first, std::min<std::int64_t>(first + blocks, segment.blocks.size()), chunk);
  });
}

void LargeSegments::select() {
  guess();
  Segments listed, tied, missed;
  for (Segment& segment : segments_) missed.push_back(&segment);
  while (true) {
    scan(missed);
    Segments again;
    for (Segment* segment : missed) {
      const Outcome found = outcome(*segment);
      if (found == Outcome::listed) listed.push_back(segment);
      if (found == Outcome::tied) tied.push_back(segment);
      if (found == Outcome::missed) again.push_back(segment);
    }
    if (again.empty()) break;
    narrow_by_scores(again);
    missed = again;
  }
  narrow_by_entries(listed);
  listed.insert(listed.end(), tied.begin(), tied.end());
  select_inside(listed);
}

void LargeSegments::guess() {
  std::vector<ScoreSample> samples;
  for (const Segment& segment : segments_) samples.emplace_back(segment.begin, segment.end);
  const auto count = static_cast<std::int64_t>(segments_.size());
  parallel_for(count * ScoreSample::kParts, threads_, [&](std::int64_t item) {
    samples[item / ScoreSample::kParts].draw(a_, static_cast<int>(item % ScoreSample::kParts));
  });
  parallel_for(count, threads_, [&](std::int64_t index) {
    Segment& segment = segments_[index];
    const std::int32_t below_all = key_limits(a_.dtype).below_all();
    const Guess found = segment.gamma < 1 ? samples[index].guess(a_.dtype, segment.gamma)
                                          : Guess{{below_all, below_all}, 0};  // all candidates are above
    segment.search = {found.bracket, 0, found.inside};
  });
}

// Selects what is above the brackets and lists what is inside.
void LargeSegments::scan(const Segments& segments) {
  std::int64_t capacity = kBlock;
  for (const Segment* segment : segments)
    capacity += segment->search.population * 3 / 2 + (segment->end - segment->begin) / kSlackShare;
  EntryPool& pool = *pools_.emplace_back(std::make_unique<EntryPool>(capacity));
  ScanKernel* const scan_kernel = SMILE_FAST_DISPATCH(scan_kernel);
  const bool streamed = a_.length >= kStreamedLength;
  for_chunks(segments, kScanBlocks, [&](Segment& segment, std::int64_t first, std::int64_t last, std::int64_t) {
    Entry entries[kBlock];
    const Bracket bracket = segment.search.bracket;
    for (std::int64_t index = first; index < last; ++index) {
      const BlockCounts counts =
          scan_kernel(voxels_of(segment, index), bracket, bracket.single() ? nullptr : entries, streamed);
      Entry* kept = nullptr;
      if (counts.inside != 0 && !bracket.single()) kept = pool.take(counts.inside);
      if (kept != nullptr) std::memcpy(kept, entries, counts.inside * sizeof(Entry));
      segment.blocks[index] = {counts, 0, kept};
    }
  });
}

// What a scan has found out about a segment; sets its search to the bracket that surely holds the threshold.
LargeSegments::Outcome LargeSegments::outcome(Segment& segment) const {
  std::int64_t candidates = 0, above = 0, inside = 0;
  bool all_listed = true;
  for (const Block& block : segment.blocks) {
    candidates += block.counts.candidates;
    above += block.counts.above;
    inside += block.counts.inside;
    all_listed &= block.counts.inside == 0 || block.entries != nullptr;
  }
  const std::int64_t wanted = fraction_count(segment.gamma, candidates);
  if (wanted == above) return Outcome::selected;
  const KeyLimits limits = key_limits(a_.dtype);
  const Bracket bracket = segment.search.bracket;
  if (wanted < above) {
    segment.search = {{bracket.high + 1, limits.highest}, wanted, above};
    return Outcome::missed;
  }
  if (wanted > above + inside) {
    segment.search = {{limits.nan(), bracket.low - 1}, wanted - above - inside, candidates - above - inside};
    return Outcome::missed;
  }
  segment.search = {bracket, wanted - above, inside};
  if (bracket.single()) return Outcome::tied;
  return all_listed ? Outcome::listed : Outcome::missed;
}

// One step of the search in all segments: count_block(segment, index, bins, counts) adds a block's keys to their bins.
template <typename CountBlock>
void LargeSegments::narrow(const Segments& segments, const CountBlock& count_block) const {
  std::int64_t chunks = 0;
  for (const Segment* segment : segments)
    chunks += blocks_of(static_cast<std::int64_t>(segment->blocks.size()), kSearchBlocks);
  std::vector<std::uint32_t> counts(chunks << kBinBits);
  for_chunks(segments, kSearchBlocks, [&](Segment& segment, std::int64_t first, std::int64_t last, std::int64_t chunk) {
    const Bins bins(segment.search.bracket, kBinBits);
    for (std::int64_t index = first; index < last; ++index)
      count_block(segment, index, bins, &counts[chunk << kBinBits]);
  });
  const std::uint32_t* next = counts.data();
  for (Segment* segment : segments) {
    const Bins bins(segment->search.bracket, kBinBits);
    std::vector<std::int64_t> totals(std::size_t{1} << kBinBits);
    const auto own = blocks_of(static_cast<std::int64_t>(segment->blocks.size()), kSearchBlocks);
    for (std::int64_t chunk = 0; chunk < own; ++chunk, next += totals.size())
      for (std::size_t bin = 0; bin < totals.size(); ++bin) totals[bin] += next[bin];
    segment->search.narrow(bins, totals.data());
  }
}

// Until a list of what is left is worth its memory.
void LargeSegments::narrow_by_scores(const Segments& segments) const {
  HistogramKernel* const histogram_kernel = SMILE_FAST_DISPATCH(histogram_kernel);
  const auto too_wide = [](const Segment* segment) {
    return !segment->search.bracket.single() &&
           segment->search.population > (segment->end - segment->begin) / kListedShare;
  };
  Segments wide = segments;
  while (std::erase_if(wide, [&](const Segment* segment) { return !too_wide(segment); }), !wide.empty()) {
    narrow(wide, [&](const Segment& segment, std::int64_t index, const Bins& bins, std::uint32_t* counts) {
      histogram_kernel(voxels_of(segment, index), bins, counts);
    });
  }
}

void LargeSegments::narrow_by_entries(const Segments& segments) const {
  Segments wide = segments;
  while (std::erase_if(wide, [](const Segment* segment) { return segment->search.bracket.single(); }), !wide.empty()) {
    narrow(wide, [](const Segment& segment, std::int64_t index, const Bins& bins, std::uint32_t* counts) {
      count_entries(segment.blocks[index].listed(), bins, counts);
    });
  }
}

// Selects the candidates inside the first bracket that are above the threshold, and the first of those that tie with
// it.
void LargeSegments::select_inside(const Segments& segments) const {
  for_chunks(segments, kSearchBlocks, [](Segment& segment, std::int64_t first, std::int64_t last, std::int64_t) {
    for (Block& block : std::span(segment.blocks).subspan(first, last - first)) {
      if (block.entries == nullptr) {
        block.ties = block.counts.inside;
        continue;
      }
      block.ties = 0;
      for (const Entry& entry : block.listed()) block.ties += entry.key == segment.search.bracket.low;
    }
  });
  for (Segment* segment : segments) {
    std::int64_t left = segment->search.rank;
    for (Block& block : segment->blocks) {
      block.ties = static_cast<std::uint32_t>(std::min<std::int64_t>(block.ties, left));
      left -= block.ties;
    }
  }
  SelectTiesKernel* const select_ties_kernel = SMILE_FAST_DISPATCH(select_ties_kernel);
  for_chunks(segments, kScanBlocks, [&](const Segment& segment, std::int64_t first, std::int64_t last, std::int64_t) {
    const std::int32_t threshold = segment.search.bracket.low;
    for (std::int64_t index = first; index < last; ++index) {
      const Block& block = segment.blocks[index];
      const ScoreBlock voxels = voxels_of(segment, index);
      if (block.entries != nullptr)
        select_entries(block.listed(), threshold, block.ties, voxels.selection);
      else if (block.ties != 0)
        select_ties_kernel(voxels, threshold, block.ties);
    }
  });
}

}  // namespace smile_fast
