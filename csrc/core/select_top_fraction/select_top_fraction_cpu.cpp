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

constexpr std::int64_t kPieceCost = 256;  // a piece takes as long as so many voxels, beside its own
constexpr std::int64_t kOutside = -1;

// Voxels that are looked after together: a small segment, or voxels of which none is selected.
struct Piece {
  std::int64_t begin, end;
  std::int64_t segment;  // or kOutside
};

struct Plan {
  std::vector<Piece> pieces;
  std::vector<std::size_t> runs;  // [n + 1]: run i, a work item, is the pieces runs[i] to runs[i + 1] - 1
  std::vector<Piece> large;
};

void leave_out(std::int64_t begin, std::int64_t end, std::vector<Piece>& pieces) {
  for (; begin < end; begin += kItem) pieces.push_back({begin, std::min(begin + kItem, end), kOutside});
}

Plan make_plan(const SelectTopFractionArguments& a) {
  Plan plan;
  std::int64_t end = 0;
  for (std::int64_t segment = 0; segment < a.segments; ++segment) {
    const std::int64_t begin = std::clamp(a.offsets[segment], end, a.length);
    leave_out(end, begin, plan.pieces);
    end = std::clamp(a.offsets[segment + 1], begin, a.length);
    if (!(a.gamma[segment] > 0))  // NaN is 0, too
      leave_out(begin, end, plan.pieces);
    else if (end > begin)
      (end - begin > kSmall ? plan.large : plan.pieces).push_back({begin, end, segment});
  }
  leave_out(end, a.length, plan.pieces);

  std::int64_t cost = kItem;
  for (std::size_t piece = 0; piece < plan.pieces.size(); ++piece) {
    if (cost >= kItem) {
      plan.runs.push_back(piece);
      cost = 0;
    }
    cost += plan.pieces[piece].end - plan.pieces[piece].begin + kPieceCost;
  }
  plan.runs.push_back(plan.pieces.size());
  return plan;
}

// A small segment, all of whose candidates fit into `entries`.
void select_small(const SelectTopFractionArguments& a, const Piece& piece, Entry* entries) {
  const KeyLimits limits = key_limits(a.dtype);
  const Bracket all{limits.nan(), limits.highest};
  const std::int64_t size = element_size(a.dtype);
  const ScoreBlock block{a.dtype, static_cast<const char*>(a.scores) + piece.begin * size, a.candidates + piece.begin,
                         a.selection + piece.begin, static_cast<std::int32_t>(piece.end - piece.begin)};
  const std::int64_t candidates = SMILE_FAST_DISPATCH(scan_kernel)(block, all, entries, false).inside;
  if (candidates == 0) return;
  Search search{all, fraction_count(a.gamma[piece.segment], candidates), candidates};
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
  for (const Piece& piece : plan.large) large.add(piece.begin, piece.end, a.gamma[piece.segment]);
  large.select();
  parallel_for(static_cast<std::int64_t>(plan.runs.size()) - 1, threads, [&](std::int64_t run) {
    const auto entries = std::make_unique_for_overwrite<Entry[]>(kSmall);
    for (std::size_t i = plan.runs[run]; i < plan.runs[run + 1]; ++i) {
      const Piece& piece = plan.pieces[i];
      if (piece.segment == kOutside)
        std::memset(a.selection + piece.begin, 0, static_cast<std::size_t>(piece.end - piece.begin));
      else
        select_small(a, piece, entries.get());
    }
  });
}

}  // namespace smile_fast
