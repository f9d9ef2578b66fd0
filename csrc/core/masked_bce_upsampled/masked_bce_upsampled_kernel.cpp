// Compiled once per CPU capability, see core/common/cpu_capability.h.
//
// A tile is up to kTileRows output rows that read the same low-resolution rows, times kTileColumns columns. Its labels
// are decoded once for all organs. Then, organ by organ: the low-resolution rows are interpolated horizontally; column
// by column of vectors, the output rows are interpolated between them, and their gradients gathered for the upper and
// for the lower one in registers; at the end, these two rows of gradients are reduced horizontally.
#include "core/masked_bce_upsampled/masked_bce_upsampled_kernel.h"

#include "core/masked_bce/label_counts.h"
#include "core/masked_bce/supervision.h"
#include "core/masked_bce_upsampled/interpolation.h"
#include "core/masked_bce_upsampled/upsampled_rows.h"

namespace smile_fast::SMILE_FAST_CPU_CAPABILITY {
namespace {

constexpr int kTileRows = 8;
constexpr int kWays = 2;  // sums of losses that take turns: a single one would overflow with 4 lanes
constexpr int kColumnsAtOnce = kTileColumns / 2;  // columns whose losses are summed in single precision
static_assert(kTileColumns == kRun);
static_assert(kTileRows * kColumnsAtOnce <= kLossFactors);
static_assert(kTileRows * kColumnsAtOnce / kLanes / kWays <= kLossVectors);

// One output row of a tile, for one organ.
struct Row {
  const Run* run;
  float top, bottom;  // weights of the upper and of the lower low-resolution row
};

// The rows of a tile on which an organ is known: first those without positives on which it is known everywhere.
struct Rows {
  Row rows[kTileRows];
  int plain, all;
};

// What a tile holds at full width, for one organ.
struct Scratch {
  alignas(64) float logits[2][kTileColumns];  // in bits
  alignas(64) GradientRow gradient[2];
  alignas(64) float low[kTileColumns + 2 * kLanes];
  Run runs[kTileRows];
};

// The vectors of a tile that take turns, and what is summed over its rows: losses, and the gradients of the upper and
// of the lower low-resolution row.
struct Columns {
  Floats top[kWays], down[kWays];  // a row's logits are top + down * weight of the lower row
  LossSum losses[kWays];
  Floats gradient[kWays][2];
};

// One output row: adds to what is summed.
template <bool kMixed, bool kGradient>
SMILE_FAST_INLINE void row_losses(const Row& row, int first, int bit, Columns& columns) {
  for (int way = 0; way < kWays; ++way) {
    const int column = first + way * kLanes;
    const Words flip = kMixed ? sign_where(load_as<Words>(row.run->positive + column), bit) : Words{};
    const Words keep = kMixed ? ones_where(load_as<Words>(row.run->known + column), bit) : ~Words{};
    const Floats logits = columns.top[way] + columns.down[way] * row.bottom;
    const Floats slope = bce_bits(logits, flip, keep, columns.losses[way]);
    if constexpr (kGradient) {
      columns.gradient[way][0] += slope * row.top;
      columns.gradient[way][1] += slope * row.bottom;
    }
  }
}

// One organ on all rows of a tile, from its interpolated rows of logits to their rows of gradients. Returns whether
// none of these holds a NaN.
template <bool kGradient>
SMILE_FAST_INLINE bool losses(const Rows& rows, int bit, Scratch& scratch, RunningLoss& total) {
  bool numbers = true;
  for (int half = 0; half < kTileColumns; half += kColumnsAtOnce) {
    Columns columns = {};
    for (int first = half; first < half + kColumnsAtOnce; first += kWays * kLanes) {
      for (int way = 0; way < kWays; ++way) {
        const int column = first + way * kLanes;
        columns.top[way] = load(scratch.logits[0] + column);
        columns.down[way] = load(scratch.logits[1] + column) - columns.top[way];
        columns.gradient[way][0] = columns.gradient[way][1] = Floats{};
      }
      int row = 0;
      for (; row < rows.plain; ++row) row_losses<false, kGradient>(rows.rows[row], first, bit, columns);
      for (; row < rows.all; ++row) row_losses<true, kGradient>(rows.rows[row], first, bit, columns);
      if constexpr (kGradient) {
        for (int way = 0; way < kWays; ++way)
          for (int side = 0; side < 2; ++side)
            store(scratch.gradient[side] + first + way * kLanes, columns.gradient[way][side]);
      }
    }
    numbers &= total.add(columns.losses);
  }
  return numbers;
}

// Where a low-resolution row is: in one slice, or in two of which it is the weighted sum.
struct LowPlace {
  std::int64_t slice[2];
  float weight[2];
  int slices;
  std::int64_t offset;  // within a slice
};

// The rows of a tile at full width.
struct RowGroup {
  const std::uint8_t* labels;  // of the first row
  int rows;
  float top[kTileRows], bottom[kTileRows];
  LowPlace upper, lower;
};

// One band, from its first high slice to its last.
template <typename Logit, bool kGradient>
class BandLosses {
 public:
  BandLosses(const MaskedBceUpsampledArguments& arguments, const ColumnTables& columns, const UpsampledBand& band)
      : a_(arguments), columns_(columns), band_(band), outer_(outer_axis(arguments)), low_slice_(band.low_begin) {
    memset(static_cast<void*>(&scratch_), 0, sizeof scratch_);
  }

  void run() {
    if (is_image(a_))
      images();
    else
      volumes();
    if constexpr (kGradient) {
      advance(band_.low_end);
      if (band_.last != nullptr) finish_slice(band_.low_end);
    }
    for (std::int64_t organ = 0; organ < band_.organs; ++organ) {
      losses_[organ].linear *= kNatsPerBit;
      band_.sums[organ] = losses_[organ].total();
    }
  }

 private:
  void images() {
    const std::uint8_t* labels = a_.labels + band_.image * a_.high.height * a_.high.width;
    const auto place = [](std::int64_t row) { return LowPlace{{row, row}, {1.0f, 0.0f}, 1, 0}; };
    rows(labels, band_.begin, band_.end, place);
  }

  void volumes() {
    const std::int64_t slice_size = a_.high.height * a_.high.width;
    for (std::int64_t slice = band_.begin; slice < band_.end; ++slice) {
      const Source source = source_of(slice, outer_.low, outer_.high);
      advance(source.low);
      const auto place = [&](std::int64_t row) {
        return LowPlace{{source.low, source.next},
                        {1.0f - source.weight, source.weight},
                        source.low == source.next ? 1 : 2,
                        row * a_.low.width};
      };
      rows(a_.labels + (band_.image * a_.high.depth + slice) * slice_size, 0, a_.high.height, place);
    }
  }

  // The output rows [begin, end) of the slice of labels.
  template <typename Place>
  void rows(const std::uint8_t* labels, std::int64_t begin, std::int64_t end, const Place& place) {
    for (std::int64_t row = begin; row < end;) {
      Source source = source_of(row, a_.low.height, a_.high.height);
      RowGroup group{labels + row * a_.high.width, 0, {}, {}, place(source.low), place(source.next)};
      const std::int64_t low = source.low;
      for (; row < end && group.rows < kTileRows; ++row, ++group.rows) {
        source = source_of(row, a_.low.height, a_.high.height);
        if (source.low != low) break;
        group.top[group.rows] = 1.0f - source.weight;
        group.bottom[group.rows] = source.weight;
      }
      advance(group.upper.slice[0]);
      for (std::int64_t column = 0; column < a_.high.width; column += kTileColumns) tile(group, column);
    }
  }

  void tile(const RowGroup& group, std::int64_t column) {
    const std::int64_t words = (a_.organs + kWordBits - 1) / kWordBits;
    const std::uint32_t* table = a_.table + band_.image * kLabelValues * 2 * words + band_.organ / kWordBits;
    const int length = static_cast<int>(smaller(kTileColumns, a_.high.width - column));
    std::uint32_t known = 0;
    for (int row = 0; row < group.rows; ++row) {
      decode(group.labels + row * a_.high.width + column, length, table, words, scratch_.runs[row]);
      known |= scratch_.runs[row].known_anywhere;
    }
    for (std::int64_t organ = 0; organ < band_.organs; ++organ) {
      const int bit = static_cast<int>((band_.organ + organ) % kWordBits);
      if (known >> bit & 1u) organ_on_tile(group, column, organ, bit);
    }
  }

  void organ_on_tile(const RowGroup& group, std::int64_t column, std::int64_t organ, int bit) {
    const ColumnTile& tile = columns_.tiles[column / kTileColumns];
    const LowRow<Logit> low_rows[2] = {low_row(group.upper, organ), low_row(group.lower, organ)};
    for (int side = 0; side < 2; ++side)
      interpolate_columns(low_rows[side], columns_, tile, column, a_.low.width, scratch_.low, scratch_.logits[side]);
    const bool numbers = losses<kGradient>(rows_of(group, bit), bit, scratch_, losses_[organ]);
    if constexpr (kGradient) {
      if (numbers)
        reduce_columns<true>(scratch_.gradient, columns_, tile, low_rows);
      else
        reduce_columns<false>(scratch_.gradient, columns_, tile, low_rows);
    }
  }

  Rows rows_of(const RowGroup& group, int bit) const {
    const auto set = [bit](std::uint32_t word) { return (word >> bit & 1u) != 0; };
    Rows found;
    int count = 0;
    for (const bool mixed : {false, true}) {
      for (int row = 0; row < group.rows; ++row) {
        const Run& run = scratch_.runs[row];
        const bool plain = set(run.known_everywhere) && !set(run.positive_anywhere);
        if (set(run.known_anywhere) && plain != mixed) found.rows[count++] = {&run, group.top[row], group.bottom[row]};
      }
      if (!mixed) found.plain = count;
    }
    found.all = count;
    return found;
  }

  LowRow<Logit> low_row(const LowPlace& place, std::int64_t organ) const {
    LowRow<Logit> row{{}, {}, {place.weight[0], place.weight[1]}, place.slices};
    for (int slice = 0; slice < 2; ++slice) {
      row.logits[slice] = static_cast<const Logit*>(a_.logits) + offset(organ, place.slice[slice]) + place.offset;
      row.gradient[slice] = kGradient ? sums(organ, place.slice[slice]) + place.offset : nullptr;
    }
    return row;
  }

  std::int64_t offset(std::int64_t organ, std::int64_t slice) const {
    return ((band_.image * a_.organs + band_.organ + organ) * outer_.low + slice) * outer_.slice_logits;
  }

  // Gradients of two neighbouring slices are summed at a time: even and odd ones take turns.
  float* sums(std::int64_t organ, std::int64_t slice) const {
    return band_.scratch + (slice % 2 * band_.organs + organ) * outer_.slice_logits;
  }

  void advance(std::int64_t slice) {
    for (; low_slice_ < slice; ++low_slice_)
      if constexpr (kGradient) finish_slice(low_slice_);
  }

  // Nothing will be added to a slice any more: it goes to the gradient or to what bands share, and back to zeros.
  void finish_slice(std::int64_t slice) {
    float* shared = slice == band_.low_begin ? band_.first : slice == band_.low_end ? band_.last : nullptr;
    const std::int64_t size = outer_.slice_logits;
    for (std::int64_t organ = 0; organ < band_.organs; ++organ) {
      float* values = sums(organ, slice);
      if (shared != nullptr) {
        memcpy(shared + organ * size, values, size * sizeof(float));
      } else {
        Logit* gradient = static_cast<Logit*>(a_.gradient) + offset(organ, slice);
        std::int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) store(gradient + i, load(values + i));
        for (; i < size; ++i) gradient[i] = from_float<Logit>(values[i]);
      }
      memset(values, 0, size * sizeof(float));
    }
  }

  const MaskedBceUpsampledArguments& a_;
  const ColumnTables& columns_;
  const UpsampledBand& band_;
  const OuterAxis outer_;
  std::int64_t low_slice_;  // the upper one of the two slices whose gradients are being summed
  RunningLoss losses_[kWordBits];
  Scratch scratch_;
};

template <typename Logit>
void band_losses(const MaskedBceUpsampledArguments& a, const ColumnTables& columns, const UpsampledBand& band) {
  static_assert(sizeof(BandLosses<Logit, true>) <= kUpsampledStack);
  if (a.gradient == nullptr)
    BandLosses<Logit, false>(a, columns, band).run();
  else
    BandLosses<Logit, true>(a, columns, band).run();
}

}  // namespace

void masked_bce_upsampled_kernel(const MaskedBceUpsampledArguments& a, const ColumnTables& columns,
                                 const UpsampledBand& band) {
  switch (a.dtype) {
    case DType::float32:
      return band_losses<float>(a, columns, band);
    case DType::bfloat16:
      return band_losses<BFloat16>(a, columns, band);
    case DType::float16:
      return band_losses<Float16>(a, columns, band);
  }
}

}  // namespace smile_fast::SMILE_FAST_CPU_CAPABILITY
