#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "core/common/cpu_capability.h"
#include "core/common/fraction_count.h"
#include "core/common/huge_pages.h"
#include "core/common/parallel.h"
#include "core/select_top_fraction/key_search.h"
#include "core/select_top_fraction/select_top_fraction.h"
#include "core/select_top_fraction/select_top_fraction_kernel.h"
#include "core/select_top_fraction/select_top_fraction_large.h"

namespace smile_fast {
namespace {

constexpr std::int64_t kSmall = 1 << 14;  // voxels: longer segments are sampled
constexpr std::int64_t kItem = 1 << 16;   // voxels of one work item, more or less
constexpr int kMostBinBits = 11;

constexpr std::int64_t kChunkCost = 256;  // a chunk takes as long as so many voxels, beside its own
constexpr std::int64_t kOutside = -1;

// Voxels that are looked after together: a small segment, or voxels of which none is selected.
struct Chunk {
  std::int64_t begin, end;
  std::int64_t segment;  // or kOutside
};

struct Plan {
  std::vector<Chunk> chunks;
  std::vector<std::size_t> runs;  // [n + 1]: run i, a work item, is the chunks runs[i] to runs[i + 1] - 1
  std::vector<Chunk> large;
};

void leave_out(std::int64_t begin, std::int64_t end, std::vector<Chunk>& chunks) {
  for (; begin < end; begin += kItem) chunks.push_back({begin, std::min(begin + kItem, end), kOutside});
}

Plan make_plan(const SelectTopFractionArguments& a) {
  Plan plan;
  std::int64_t end = 0;
  for (std::int64_t segment = 0; segment < a.segments; ++segment) {
    const std::int64_t begin = std::clamp(a.offsets[segment], end, a.length);
    leave_out(end, begin, plan.chunks);
    end = std::clamp(a.offsets[segment + 1], begin, a.length);
    if (!(a.gamma[segment] > 0))  // NaN is 0, too
      leave_out(begin, end, plan.chunks);
    else if (end > begin)
      (end - begin > kSmall ? plan.large : plan.chunks).push_back({begin, end, segment});
  }
  leave_out(end, a.length, plan.chunks);

  std::int64_t cost = kItem;
  for (std::size_t chunk = 0; chunk < plan.chunks.size(); ++chunk) {
    if (cost >= kItem) {
      plan.runs.push_back(chunk);
      cost = 0;
    }
    cost += plan.chunks[chunk].end - plan.chunks[chunk].begin + kChunkCost;
  }
  plan.runs.push_back(plan.chunks.size());
  return plan;
}

// A small segment, all of whose candidates fit into `entries`.
void select_small(const SelectTopFractionArguments& a, const Chunk& chunk, Entry* entries) {
  const KeyLimits limits = key_limits(a.dtype);
  const Bracket all{limits.nan(), limits.highest};
  const std::int64_t size = element_size(a.dtype);
  const ScoreBlock block{a.dtype, static_cast<const char*>(a.scores) + chunk.begin * size, a.candidates + chunk.begin,
                         a.selection + chunk.begin, static_cast<std::int32_t>(chunk.end - chunk.begin)};
  const std::int64_t candidates = SMILE_FAST_DISPATCH(scan_kernel)(block, all, entries, false).inside;
  if (candidates == 0) return;
  Search search{all, fraction_count(a.gamma[chunk.segment], candidates), candidates};
  const std::span<const Entry> listed(entries, static_cast<std::size_t>(candidates));
  const int bits = std::bit_width(static_cast<std::uint64_t>(candidates)) / 2 + 4;  // 4 to 11
  while (!search.bracket.single()) {
    std::array<std::uint32_t, 1 << kMostBinBits> counts;
    const Bins bins(search.bracket, bits);
    std::fill_n(counts.begin(), bins.count(), 0);
    count_entries(listed, bins, counts.data());
    search.narrow(bins, counts.data());
  }
  select_entries(listed, search.bracket.low, search.rank, block.selection);
}

}  // namespace

void select_top_fraction_cpu(const SelectTopFractionArguments& a, int threads) {
  advise_huge_pages(a.selection, static_cast<std::size_t>(a.length));
  const Plan plan = make_plan(a);
  LargeSegments large(a, threads);
  for (const Chunk& chunk : plan.large) large.add(chunk.begin, chunk.end, a.gamma[chunk.segment]);
  large.select();
  parallel_for(static_cast<std::int64_t>(plan.runs.size()) - 1, threads, [&](std::int64_t run) {
    const auto entries = std::make_unique_for_overwrite<Entry[]>(kSmall);
    for (std::size_t i = plan.runs[run]; i < plan.runs[run + 1]; ++i) {
      const Chunk& chunk = plan.chunks[i];
      if (chunk.segment == kOutside)
        std::memset(a.selection + chunk.begin, 0, static_cast<std::size_t>(chunk.end - chunk.begin));
      else
        select_small(a, chunk, entries.get());
    }
  });
}

}  // namespace smile_fast
