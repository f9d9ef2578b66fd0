"""select_top_fraction in Triton: compact the candidates, find the threshold by radix refinement, write.

Scores become 32-bit keys of the same order. One pass over the scores writes every tile's candidates, key and place,
to the tile's own slot of the workspace, and counts the keys' first 8 bits a segment. Each refinement counts the next
8 bits of the keys that agree with the threshold so far; how many are wanted is computed on the device. Keys above
the threshold are selected, and of those equal to it the first ones: ranks come from the numbers of ties a tile.

Every pass is a launch of its own, so no program waits for another one: zeros, compaction, one refinement for each of
the other levels, the numbers of ties, the selection.

Workspace: 6 bytes a voxel, of which only the candidates' share is touched, 8 KiB a segment, 8 bytes a tile. Its size
depends on the shapes alone, so the whole can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.reference import INTEGER_TOLERANCE as _INTEGER_TOLERANCE
from smile_fast.ops.triton_kernels.core import INTERPRETED, Configuration

INTEGER_TOLERANCE = tl.constexpr(_INTEGER_TOLERANCE)
BINS = tl.constexpr(256)
LEVELS = {torch.float32: 4, torch.float16: 3, torch.bfloat16: 2}
"""How many times 8 bits tell all numbers of a dtype apart; the rest of the key is the same for equal numbers."""
TILE = 64 if INTERPRETED else 8192  # voxels of a program; their offsets fit in 16 bits
BLOCK = 32 if INTERPRETED else 1024  # voxels or candidates a step
SPAN = 4 if INTERPRETED else 1024  # tiles whose ties have a sum of their own

LAUNCH_OPTIONS = Configuration({}, registers=128).launch_options


@triton.jit
def order_key(score):
    """Return the 32-bit key of a float32 score: larger for larger ones, equal for the zeros, 0 for NaN."""
    bits = tl.where(score == 0, 0.0, score).to(tl.uint32, bitcast=True)
    key = tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000)
    return tl.where(score == score, key, 0)


@triton.jit
def bound(segments, index, length):
    """Return a segment's offset; one that is no offset must not lead outside of the scores."""
    return tl.minimum(tl.maximum(tl.load(segments + index), 0), length)


@triton.jit
def first_segment(segments, count, position):
    """Return the first segment that ends after a position; `count` if none does. By bisection."""
    low = count * 0
    high = count
    while low < high:
        middle = (low + high) // 2
        if tl.load(segments + middle + 1) <= position:
            low = middle + 1
        else:
            high = middle
    return low


@triton.jit
def quota(share, candidates):
    """Return ceil(share * candidates), the product put back on an integer that it only missed by rounding."""
    share = tl.minimum(tl.maximum(tl.where(share == share, share, 0.0), 0.0), 1.0)
    product = share * candidates.to(tl.float64)
    nearest = tl.floor(product + 0.5)
    integral = tl.abs(product - nearest) <= INTEGER_TOLERANCE * nearest
    return tl.minimum(tl.where(integral, nearest, tl.ceil(product)).to(tl.int64), candidates)


@triton.jit
def threshold(histogram, share, levels):
    """Descend some levels of a segment's histogram [levels, 256].

    Returns:
        prefix: uint32, the first 8 * levels bits of the smallest key that is selected; all ones if none is.
        wanted: int64, how many of the keys that start with it are selected.
        there: int64, how many keys start with it.
    """
    bins = tl.arange(0, BINS)
    there = tl.sum(tl.load(histogram + bins))
    wanted = quota(share, there)
    prefix = wanted * 0
    for level in range(levels):
        counts = tl.load(histogram + level * BINS + bins)
        at_least = tl.sum(counts) - tl.cumsum(counts) + counts  # keys in this bin or a higher one
        digit = tl.sum((at_least >= wanted).to(tl.int64)) - 1
        wanted -= tl.sum(tl.where(bins > digit, counts, 0))
        there = tl.sum(tl.where(bins == digit, counts, 0))
        prefix = prefix * BINS + digit
    return prefix.to(tl.uint32), wanted, there


@triton.jit
def compact_kernel(
    scores,  # [N]
    candidates,  # [N] uint8
    segments,  # [S + 1] int64
    selection,  # [N] uint8: set to 0
    keys,  # [tiles, TILE] uint32
    offsets,  # [tiles, TILE] int16
    sizes,  # [tiles] int32: candidates a tile
    histograms,  # [S, LEVELS, 256] int64, zero
    length, count,
    LEVELS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the candidates of one tile to its slot, segment after segment, and count their first 8 bits."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * TILE
    end = tl.minimum(start + TILE, length)
    lanes = tl.arange(0, BLOCK)
    for chunk in range(start, end, BLOCK):
        tl.store(selection + chunk + lanes, tl.zeros([BLOCK], tl.uint8), mask=chunk + lanes < end)
    size = tl.zeros([], tl.int32)
    segment = first_segment(segments, count, start)
    low = bound(segments, segment, length)
    while (segment < count) & (low < end):
        high = bound(segments, tl.minimum(segment + 1, count), length)
        counts = tl.zeros([BINS], tl.int32)
        aligned = start + (tl.maximum(low, start) - start) // BLOCK * BLOCK  # for wide accesses
        for chunk in range(aligned, tl.minimum(high, end), BLOCK):
            voxel = chunk + lanes
            inside = (voxel >= low) & (voxel < high) & (voxel < end)
            # Not masked by the segment, whose unknown ends would split the access into single bytes.
            candidate = inside & (tl.load(candidates + voxel, mask=voxel < end, other=0) != 0)
            key = order_key(tl.load(scores + voxel, mask=candidate, other=0.0).to(tl.float32))
            place = start + size + tl.cumsum(candidate.to(tl.int32)) - 1
            tl.store(keys + place, key, mask=candidate)
            tl.store(offsets + place, (voxel - start).to(tl.int16), mask=candidate)
            counts += tl.histogram((key >> 24).to(tl.int32), BINS, mask=candidate)
            size += tl.sum(candidate.to(tl.int32))
        bins = tl.arange(0, BINS)
        place = histograms + segment.to(tl.int64) * LEVELS * BINS + bins
        tl.atomic_add(place, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
        segment += 1
        low = high
    tl.store(sizes + tile, size)


@triton.jit
def refine_kernel(
    keys, offsets, sizes, segments,
    shares,  # [S] float64: gamma
    histograms, length, count,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count 8 more bits of one tile's keys that start like the threshold, whose first 8 * LEVEL bits are known."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * TILE
    end = tl.minimum(start + TILE, length)
    size = tl.load(sizes + tile)
    lanes = tl.arange(0, BLOCK)
    if size > 0:
        segment = first_segment(segments, count, start)
        low = bound(segments, segment, length)
        while (segment < count) & (low < end):
            high = bound(segments, tl.minimum(segment + 1, count), length)
            histogram = histograms + segment.to(tl.int64) * LEVELS * BINS
            prefix, _, _ = threshold(histogram, tl.load(shares + segment), LEVEL)
            counts = tl.zeros([BINS], tl.int32)
            for chunk in range(0, size, BLOCK):
                filled = chunk + lanes < size
                key = tl.load(keys + start + chunk + lanes, mask=filled, other=0)
                voxel = start + tl.load(offsets + start + chunk + lanes, mask=filled, other=0)
                inside = filled & (voxel >= low) & (voxel < high)
                digit = (key >> (24 - 8 * LEVEL)) & 255
                same = key >> (32 - 8 * LEVEL) == prefix
                counts += tl.histogram(digit.to(tl.int32), BINS, mask=inside & same)
            place = histogram + LEVEL * BINS + tl.arange(0, BINS)
            tl.atomic_add(place, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
            segment += 1
            low = high


@triton.jit
def count_ties_kernel(
    keys, offsets, sizes, segments, shares, histograms,
    ties,  # [tiles] int32
    sums_of_ties,  # [ceil(tiles / SPAN)] int64, zero
    length, count,
    LEVELS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Count the keys of one tile that equal the threshold of the segment that goes on behind the tile."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * TILE
    end = tl.minimum(start + TILE, length)
    size = tl.load(sizes + tile)
    lanes = tl.arange(0, BLOCK)
    found = tl.zeros([], tl.int32)
    segment = first_segment(segments, count, end - 1)
    if (size > 0) & (segment < count):
        low = bound(segments, segment, length)
        histogram = histograms + segment.to(tl.int64) * LEVELS * BINS
        prefix, _, _ = threshold(histogram, tl.load(shares + segment), LEVELS)
        for chunk in range(0, size, BLOCK):
            filled = chunk + lanes < size
            key = tl.load(keys + start + chunk + lanes, mask=filled, other=0)
            voxel = start + tl.load(offsets + start + chunk + lanes, mask=filled, other=0)
            tie = filled & (voxel >= low) & (key >> (32 - 8 * LEVELS) == prefix)
            found += tl.sum(tie.to(tl.int32))
    tl.store(ties + tile, found)
    tl.atomic_add(sums_of_ties + tile // SPAN, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def ties_before(ties, sums_of_ties, tile, SPAN: tl.constexpr):
    """Return how many ties all tiles before one have."""
    span = tl.arange(0, SPAN)
    whole = tile // SPAN
    found = tl.load(ties + whole * SPAN + span, mask=whole * SPAN + span < tile, other=0).to(tl.int64)
    for first in range(0, whole, SPAN):
        found += tl.load(sums_of_ties + first + span, mask=first + span < whole, other=0)
    return tl.sum(found)


@triton.jit
def write_kernel(
    keys, offsets, sizes, segments, shares, histograms, ties, sums_of_ties,
    selection,  # [N] uint8
    length, count,
    LEVELS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Mark what is selected of one tile: keys above the threshold, and the first of those that equal it."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * TILE
    end = tl.minimum(start + TILE, length)
    size = tl.load(sizes + tile)
    lanes = tl.arange(0, BLOCK)
    if size > 0:
        segment = first_segment(segments, count, start)
        low = bound(segments, segment, length)
        while (segment < count) & (low < end):
            high = bound(segments, tl.minimum(segment + 1, count), length)
            histogram = histograms + segment.to(tl.int64) * LEVELS * BINS
            prefix, wanted, there = threshold(histogram, tl.load(shares + segment), LEVELS)
            # All tiles from the segment's first one to the one before this end inside of it: their ties are its ties.
            first = low // TILE
            rank = wanted * 0
            if (first < tile) & (wanted < there):
                rank = ties_before(ties, sums_of_ties, tile, SPAN) - ties_before(ties, sums_of_ties, first, SPAN)
            for chunk in range(0, size, BLOCK):
                filled = chunk + lanes < size
                key = tl.load(keys + start + chunk + lanes, mask=filled, other=0) >> (32 - 8 * LEVELS)
                voxel = start + tl.load(offsets + start + chunk + lanes, mask=filled, other=0)
                inside = filled & (voxel >= low) & (voxel < high)
                tie = inside & (key == prefix)
                ranks = rank + tl.cumsum(tie.to(tl.int32))  # from 1 on
                chosen = (inside & (key > prefix)) | (tie & (ranks <= wanted))
                tl.store(selection + voxel, tl.full([BLOCK], 1, tl.uint8), mask=chosen)
                rank += tl.sum(tie.to(tl.int32))
            segment += 1
            low = high


def select_top_fraction(
    scores: Tensor, candidates: Tensor, length: int, gamma: Tensor, offsets: Tensor, segments: int, selection: Tensor
) -> None:
    """Write the results of `smile_fast.ops.reference.select_top_fraction`."""
    if length == 0 or segments == 0:
        selection.zero_()
        return
    codes, selected = candidates.view(torch.uint8), selection.view(torch.uint8)
    levels, tiles = LEVELS[scores.dtype], -(-length // TILE)
    keys = codes.new_empty((tiles, TILE), dtype=torch.uint32)
    places = codes.new_empty((tiles, TILE), dtype=torch.int16)
    sizes, ties = (codes.new_empty(tiles, dtype=torch.int32) for _ in range(2))
    spans, bins = -(-tiles // SPAN), segments * levels * 256
    histograms, sums_of_ties = codes.new_zeros(bins + spans, dtype=torch.int64).split((bins, spans))
    sizing = {"LEVELS": levels, "TILE": TILE, "BLOCK": BLOCK, **LAUNCH_OPTIONS}
    slots = (keys, places, sizes, offsets, gamma, histograms)
    compact_kernel[(tiles,)](
        scores, codes, offsets, selected, keys, places, sizes, histograms, length, segments, **sizing
    )
    for level in range(1, levels):
        refine_kernel[(tiles,)](*slots, length, segments, LEVEL=level, **sizing)
    count_ties_kernel[(tiles,)](*slots, ties, sums_of_ties, length, segments, SPAN=SPAN, **sizing)
    write_kernel[(tiles,)](*slots, ties, sums_of_ties, selected, length, segments, SPAN=SPAN, **sizing)
