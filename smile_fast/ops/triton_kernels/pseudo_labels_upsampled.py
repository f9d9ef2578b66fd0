"""pseudo_labels_upsampled in Triton: the lowest selected score of every organ by counting, then the overlay at once.

A voxel's key is the bits of its score followed by its inverted index in the segment: keys are unique, and the wanted
number of largest keys is the selection, ties to the lowest index. A pass counts the next 8 bits of the keys that start
like the smallest selected one, and after it a small kernel says how that key goes on. Scores are made again in each
pass instead of being stored, each time only in the cells whose corners say that they matter: after two passes few
do, and none of an organ as soon as all keys with the prefix are selected.

Nothing is read on the host and nothing comes from there, so that the whole can be captured in a CUDA graph. Beside
labels and overlay there are 1 KiB an organ and segment, and nothing that has a voxel's resolution.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.reference import INTEGER_TOLERANCE as _INTEGER_TOLERANCE
from smile_fast.ops.triton_kernels.cells import corner_range, far_weight, first_pixel, interpolate, load_corners
from smile_fast.ops.triton_kernels.core import INTERPRETED, ROUNDING
from smile_runtime.label_map import PSEUDO_BIT as _PSEUDO_BIT

INTEGER_TOLERANCE = tl.constexpr(_INTEGER_TOLERANCE)
PSEUDO_BIT = tl.constexpr(_PSEUDO_BIT)
TILE = tl.constexpr(32)  # cells of a program, which is one warp; a word has a bit for each
BINS = tl.constexpr(256)
DIGIT = 8  # bits
WORD = tl.constexpr(63)  # channels of an argument that is a set of them
ALL_SCORES = tl.constexpr(0x7FFFFFFF)  # no score has larger bits
NO_KEY = tl.constexpr(1 << 62)  # above all keys


@triton.jit
def listed(first_organs, last_organs, channel):
    """Return whether a channel is among the organs, sets of the first 63 channels and of the others."""
    channel = tl.zeros([], tl.int32) + channel  # the interpreter's loops count in plain integers
    word = tl.where(channel < WORD, first_organs.to(tl.int64), last_organs.to(tl.int64))
    return (word >> (channel % WORD)) & 1 != 0


@triton.jit
def quota(share, candidates):
    """Return ceil(share * candidates), the product put back on an integer that it only missed by rounding."""
    product = share * candidates.to(tl.float64)
    nearest = tl.floor(product + 0.5)
    integral = tl.abs(product - nearest) <= INTEGER_TOLERANCE * nearest
    return tl.minimum(tl.where(integral, nearest, tl.ceil(product)).to(tl.int64), candidates)


@triton.jit
def with_scores(low, cell, exists, rows, columns, first, last):
    """Return which cells may have positive scores whose bits lie in [first, last]."""
    a, b, c, d = load_corners(low, cell, exists, rows, columns)
    lowest, highest, finite = corner_range(a, b, c, d)
    begin = tl.maximum(tl.where(finite, lowest, 0.0), 0.0).to(tl.int32, bitcast=True)
    end = tl.maximum(tl.where(finite, highest, float("inf")), 0.0).to(tl.int32, bitcast=True)
    return exists & (end > 0) & (end >= first) & (begin <= last)


@triton.jit
def word_of(cells):
    """Return flags of TILE cells as the bits of an integer."""
    one = tl.full([TILE], 1, tl.int64)
    return tl.sum(tl.where(cells, one << tl.arange(0, TILE), 0), axis=0)


@triton.jit
def lowest_bit(word):
    """Return the index of the lowest bit that is set, from the exponent of its value."""
    return ((word & -word).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def cells_of(first, start, cells, STRIDE: tl.constexpr, GROUP: tl.constexpr, PIXELS: tl.constexpr):
    """Return, for some pixels of GROUP cells from `first` on, their cells and places in them, and which there are."""
    pixel = start + tl.arange(0, PIXELS)
    cell = first if GROUP == 1 else first + pixel // (STRIDE * STRIDE)
    inner = pixel % (STRIDE * STRIDE)
    exists = cell < cells
    return cell, inner // STRIDE, inner % STRIDE, exists, pixel < tl.where(exists, GROUP * STRIDE * STRIDE, 0)


@triton.jit
def places_of(labels, cell, y, x, exists, columns, height, width, STRIDE: tl.constexpr):
    """Return the places of pixels in their slice, and which of them are unlabelled."""
    top, left = first_pixel(cell, columns, STRIDE)
    row, column = top + y, left + x
    inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = row * width + column
    return place, inside & (tl.load(labels + place, mask=inside, other=255) == 0)


@triton.jit
def score_of(low, cell, y, x, exists, rows, columns, STRIDE: tl.constexpr, PIXELS: tl.constexpr):
    """Return the scores of pixels: interpolated in float64, rounded once."""
    a, b, c, d = load_corners(low, cell, exists, rows, columns)
    bottom, right = far_weight(y, STRIDE).to(tl.float64), far_weight(x, STRIDE).to(tl.float64)
    high = interpolate(a, b, c, d, 2 * STRIDE - bottom, bottom, 2 * STRIDE - right, right)
    return (high * tl.full([PIXELS], 1.0 / (4.0 * STRIDE * STRIDE), tl.float64)).to(tl.float32)


@triton.jit
def key_of(score, index, index_bits):
    """Return the keys of positive scores: larger for larger scores, and for lower indices in the segment."""
    one = tl.full([], 1, tl.int64)
    bits = score.to(tl.int32, bitcast=True).to(tl.int64)
    return (bits << index_bits) | ((one << index_bits) - 1 - index)


@triton.jit(
    do_not_specialize=[
        *("first_organs", "last_organs", "channels", "rows", "columns", "depth", "height", "width"),
        *("blocks", "segments", "index_bits", "shift", "bits"),
    ]
)
def count_kernel(
    logits,  # [D, K, h, w]
    labels,  # [D, H, W] uint8
    prefixes,  # [K, S] int64: of the smallest selected key
    wanted,  # [K, S] int64: how many keys with the prefix are selected; 0 if that is settled
    histograms,  # [K, S, 256] int32, zero
    first_organs, last_organs, channels, rows, columns, depth, height, width, blocks, segments, index_bits, shift, bits,
    STRIDE: tl.constexpr, GROUP: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Count, in the cells of a tile, the keys of one organ with the prefix by the next `bits` bits."""
    channel = tl.program_id(0) // blocks // depth
    slice_ = (tl.program_id(0) // blocks % depth).to(tl.int64)
    if listed(first_organs, last_organs, channel):
        segment = channel * segments + tl.where(segments > 1, slice_, 0)
        prefix = tl.load(prefixes + segment)
        if tl.load(wanted + segment) > 0:
            cells = (rows + 1) * (columns + 1)
            first = tl.program_id(0) % blocks * TILE
            cell = first + tl.arange(0, TILE)
            low = logits + (slice_ * channels + channel) * rows * columns
            lowest = (prefix << (shift + bits)) >> index_bits
            highest = (((prefix + 1) << (shift + bits)) - 1) >> index_bits
            word = word_of(with_scores(low, cell, cell < cells, rows, columns, lowest, highest))
            if word != 0:
                area = height.to(tl.int64) * width
                before = tl.where(segments > 1, 0, slice_ * area)
                counts = tl.zeros([BINS], tl.int32)
                while word != 0:
                    group = lowest_bit(word) // GROUP * GROUP
                    word &= ~(((tl.full([], 1, tl.int64) << GROUP) - 1) << group)
                    for start in range(0, GROUP * STRIDE * STRIDE, PIXELS):
                        at, y, x, exists, used = cells_of(first + group, start, cells, STRIDE, GROUP, PIXELS)
                        place, free = places_of(labels + slice_ * area, at, y, x, used, columns, height, width, STRIDE)
                        score = score_of(low, at, y, x, exists, rows, columns, STRIDE, PIXELS)
                        key = key_of(score, before + place, index_bits)
                        counted = free & (score > 0) & (key >> (shift + bits) == prefix)  # false for NaN
                        digit = tl.where(counted, (key >> shift) & ((tl.full([], 1, tl.int64) << bits) - 1), 0)
                        counts += tl.histogram(digit.to(tl.int32), BINS, mask=counted)
                bins = tl.arange(0, BINS)
                tl.atomic_add(histograms + segment * BINS + bins, counts, mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["segments", "shift", "bits"])
def narrow_kernel(
    prefixes, wanted, histograms,
    shares,  # [1] float64: gamma
    counts,  # [K, 3] int64: adds candidates and selected voxels
    segments, shift, bits,
    FIRST: tl.constexpr,
):  # fmt: skip
    """Make the prefix of one organ and segment longer, and the histogram zero."""
    segment = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, BINS)
    counted = tl.load(histograms + segment * BINS + bins)
    tl.store(histograms + segment * BINS + bins, tl.zeros([BINS], tl.int32))
    rest = tl.load(wanted + segment)
    if FIRST:
        candidates = tl.sum(counted, axis=0).to(tl.int64)
        rest = quota(tl.load(shares), candidates)
        tl.atomic_add(counts + segment // segments * 3, candidates, mask=candidates > 0, sem="relaxed")
        tl.atomic_add(counts + segment // segments * 3 + 1, rest, mask=rest > 0, sem="relaxed")
        tl.store(wanted + segment, rest)
        tl.store(prefixes + segment, NO_KEY, mask=rest == 0)
    if rest > 0:
        at_least = tl.sum(counted, axis=0) - tl.cumsum(counted) + counted  # keys in this bin or a higher one
        digit = tl.sum((at_least >= rest).to(tl.int32), axis=0) - 1
        rest -= tl.sum(tl.where(bins > digit, counted, 0), axis=0)
        there = tl.sum(tl.where(bins == digit, counted, 0), axis=0)
        prefix = (tl.load(prefixes + segment) << bits) | digit
        settled = there == rest  # all of them; keys are unique, so that the last bits settle everything
        tl.store(prefixes + segment, tl.where(settled, prefix << shift, prefix))
        tl.store(wanted + segment, tl.where(settled, 0, rest))


@triton.jit(
    do_not_specialize=[
        *("first_organs", "last_organs", "channels", "rows", "columns", "height", "width"),
        *("blocks", "segments", "index_bits"),
    ]
)
def overlay_kernel(
    logits, labels,
    smallest,  # [K, S] int64: the smallest selected key
    overlay,  # [D, H, W] uint8, zero
    counts,  # [K, 3] int64: adds the number of kept voxels
    first_organs, last_organs, channels, rows, columns, height, width, blocks, segments, index_bits,
    STRIDE: tl.constexpr, GROUP: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Give the voxels of a tile to the organ with the highest score among those that select them."""
    slice_ = (tl.program_id(0) // blocks).to(tl.int64)
    cells = (rows + 1) * (columns + 1)
    first = tl.program_id(0) % blocks * TILE
    cell = first + tl.arange(0, TILE)
    area = height.to(tl.int64) * width
    before = tl.where(segments > 1, 0, slice_ * area)
    smallest += tl.where(segments > 1, slice_, 0)
    word = tl.zeros([], tl.int64)
    for channel in range(channels):
        if listed(first_organs, last_organs, channel):
            low = logits + (slice_ * channels + channel) * rows * columns
            bits = tl.load(smallest + channel * segments) >> index_bits
            word |= word_of(with_scores(low, cell, cell < cells, rows, columns, bits, ALL_SCORES))
    while word != 0:
        group = lowest_bit(word) // GROUP * GROUP
        word &= ~(((tl.full([], 1, tl.int64) << GROUP) - 1) << group)
        for start in range(0, GROUP * STRIDE * STRIDE, PIXELS):
            at, y, x, exists, used = cells_of(first + group, start, cells, STRIDE, GROUP, PIXELS)
            place, free = places_of(labels + slice_ * area, at, y, x, used, columns, height, width, STRIDE)
            best, code = tl.zeros([PIXELS], tl.float32), tl.zeros([PIXELS], tl.int32)
            for channel in range(channels):
                if listed(first_organs, last_organs, channel):
                    low = logits + (slice_ * channels + channel) * rows * columns
                    least = tl.load(smallest + channel * segments)
                    some = with_scores(low, at, exists, rows, columns, least >> index_bits, ALL_SCORES)
                    if some if GROUP == 1 else tl.max(some.to(tl.int32), axis=0) != 0:
                        score = score_of(low, at, y, x, exists, rows, columns, STRIDE, PIXELS)
                        # At equal scores the lower organ keeps the voxel.
                        wins = free & (score > best) & (key_of(score, before + place, index_bits) >= least)
                        best = tl.where(wins, score, best)
                        code = tl.where(wins, channel + 1 + PSEUDO_BIT, code)
            tl.store(overlay + slice_ * area + place, code.to(tl.uint8), mask=code != 0)
            for channel in range(channels):
                if listed(first_organs, last_organs, channel):
                    kept = tl.sum((code == channel + 1 + PSEUDO_BIT).to(tl.int32), axis=0).to(tl.int64)
                    tl.atomic_add(counts + channel * 3 + 2, kept, mask=kept > 0, sem="relaxed")


def pixel_sizes(stride: int) -> dict[str, int]:
    """Return how many cells are worked on together, and how many of their pixels at once."""
    area = stride * stride
    fitting = min(32, 1 << max(64 // area, 1).bit_length() - 1)
    if INTERPRETED:  # it takes as long for many pixels as for one
        fitting = 32 if area < 256 else 1
    return {"GROUP": fitting, "PIXELS": min(8192 if INTERPRETED else 128, triton.next_power_of_2(fitting * area))}


def pseudo_labels_upsampled(
    logits: Tensor, labels: Tensor, depth: int, channels: int, grid: tuple[int, int, int],
    organs: Tensor, organ_count: int, gamma: float, per_slice: bool, overlay: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    """Write the results of `smile_fast.ops.reference.pseudo_labels_upsampled`; `organs` are on the host."""
    overlay.zero_()
    counts.zero_()
    if labels.numel() == 0 or organ_count == 0:
        return
    (height, width, stride), (rows, columns) = grid, logits.shape[2:]
    segments = depth if per_slice else 1
    prefixes = labels.new_zeros((channels, segments), dtype=torch.int64)
    wanted = torch.ones_like(prefixes)
    histograms = labels.new_zeros((channels, segments, BINS.value), dtype=torch.int32)
    numbers = labels.new_zeros((channels, 3), dtype=torch.int64)
    shares = labels.new_full((1,), gamma, dtype=torch.float64)
    chosen = [sum(1 << organ % 63 for organ in organs.tolist() if organ // 63 == word) for word in range(2)]
    blocks = -(-(rows + 1) * (columns + 1) // TILE.value)
    index_bits = (labels.numel() // segments - 1).bit_length()
    options = {"STRIDE": stride, **pixel_sizes(stride), "num_warps": 1, **ROUNDING}
    shift = 31 + index_bits
    while shift > 0:
        bits = min(DIGIT, shift)
        first, shift = shift == 31 + index_bits, shift - bits
        count_kernel[(channels * depth * blocks,)](
            *(logits, labels, prefixes, wanted, histograms, *chosen, channels, rows, columns, depth, height, width),
            *(blocks, segments, index_bits, shift, bits),
            **options,
        )
        narrow_kernel[(channels * segments,)](
            prefixes, wanted, histograms, shares, numbers, segments, shift, bits, FIRST=first, num_warps=1, **ROUNDING
        )
    overlay_kernel[(depth * blocks,)](
        *(logits, labels, prefixes, overlay, numbers, *chosen, channels, rows, columns, height, width),
        *(blocks, segments, index_bits),
        **options,
    )
    torch.stack([numbers[organ] for organ in organs.tolist()], out=counts)
