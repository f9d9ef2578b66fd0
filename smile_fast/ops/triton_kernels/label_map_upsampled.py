"""label_map_upsampled in Triton: a lane owns a cell between four low pixels, a program the cells of one warp.

Where the same label wins at the four corners of a cell, it wins at all its pixels. Proof: let channel k win and j be
another one, all corners of k finite. At every corner k is at least as high as j, so every product with a weight is,
and rounded sums in the same order are. With j below k in the label map ties count, too: then k is higher at every
corner. The largest product, of a corner with a weight, differs by 2^-24 of itself, one float32, and the sums in float64
lose less than 2^-48 of it: they still differ. A NaN or an infinity of j makes -inf or NaN of its pixels, which never
win. The background of sigmoid heads is a channel of zeros with the lowest label.

What corners do not decide is interpolated in float32, over the channels only that may win a pixel of some cell of the
program. Where the best two are so close that its rounding could decide, a row is computed again in float64.
"""

import triton
import triton.language as tl
from torch import Tensor, int32

from smile_fast.ops.triton_kernels.cells import corner_range, far_weight, first_pixel, interpolate, load_corners
from smile_fast.ops.triton_kernels.core import INTERPRETED, ROUNDING

TILE = 512 if INTERPRETED else 32
"""Cells of a program, which is one warp: what it skips, it skips for few cells, and it needs no barrier."""
MARGIN = tl.constexpr(2.0**-21)
"""Times 16 STRIDE^2 and the largest corner. A float32 value is off by at most 10 roundings of 2^-24 of its scale, which
is a quarter of that; two of them by 20, and the reference's float64 by next to nothing: 32 are allowed. The product is
infinite, and nothing certain, where anything of the interpolation could overflow. A channel that wins in a neighbour
cell alone may have larger corners here, all negative or beaten: each enters with a weight of at least 1 of 4 STRIDE^2,
far more than its rounding; where that overflows, the result is -inf or NaN, which is doubtful."""
INFINITY = tl.constexpr(float("inf"))
NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def leads(value, number, best, label):
    """Return the higher value and its label; a NaN is never higher, nor is a tie with a lower label."""
    return tl.maximum(best, value), tl.where(value > best, number, label)


@triton.jit
def listed(first_channels, last_channels, channel):
    """Return whether a channel is in a set of two words of 64 bits."""
    return (tl.where(channel < 64, first_channels, last_channels) >> (channel % 64)) & 1 != 0


@triton.jit
def nearly_decided(
    low, cell, exists, channels, rows, columns, plane, first_channels, last_channels, y, x, margin,
    STRIDE: tl.constexpr, SOFTMAX: tl.constexpr, PIXELS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decide some pixels of a row of every cell in float32: labels [PIXELS, TILE], and where rounding may matter."""
    best = tl.full([PIXELS, TILE], NOTHING if SOFTMAX else 0.0, tl.float32)
    second = tl.full([PIXELS, TILE], NOTHING, tl.float32)
    label = tl.zeros([PIXELS, TILE], tl.int32)
    bottom = far_weight(y, STRIDE).to(tl.float32)
    right = far_weight(x, STRIDE).to(tl.float32)[:, None]
    for channel in range(channels):
        if listed(first_channels, last_channels, channel):
            a, b, c, d = load_corners(low + channel * plane, cell, exists, rows, columns)
            near = tl.fma(c, bottom, a * (2 * STRIDE - bottom))
            far = tl.fma(d, bottom, b * (2 * STRIDE - bottom))
            value = tl.fma((far - near)[None, :], right, (near * (2.0 * STRIDE))[None, :])
            second = tl.maximum(second, tl.minimum(best, value))
            best, label = leads(value, channel if SOFTMAX else channel + 1, best, label)
    return label, (best - second > margin[None, :]) == 0


@triton.jit
def decided(
    low, cell, exists, channels, rows, columns, plane, first_channels, last_channels, y, x,
    STRIDE: tl.constexpr, SOFTMAX: tl.constexpr, PIXELS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decide some pixels of a row of every cell as the reference does: labels [PIXELS, TILE]."""
    best = tl.full([PIXELS, TILE], NOTHING if SOFTMAX else 0.0, tl.float64)
    label = tl.zeros([PIXELS, TILE], tl.int32)
    bottom = far_weight(y, STRIDE).to(tl.float64)
    right = far_weight(x, STRIDE).to(tl.float64)[:, None]
    for channel in range(channels):
        if listed(first_channels, last_channels, channel):
            a, b, c, d = load_corners(low + channel * plane, cell, exists, rows, columns)
            value = interpolate(
                *(a[None, :], b[None, :], c[None, :], d[None, :]),
                *(2 * STRIDE - bottom, bottom, 2 * STRIDE - right, right),
            )
            best, label = leads(value, channel if SOFTMAX else channel + 1, best, label)
    return label


@triton.jit
def write_row(
    labels, label, row, column, start, exists, height, width,
    STRIDE: tl.constexpr, WORDS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Store labels [PIXELS, TILE] of a row of pixels, from `start` on, of cells that begin at `column`."""
    inside = exists & (row >= 0) & (row < height)
    pixel = tl.arange(0, PIXELS)[:, None]
    if WORDS:
        for word in tl.static_range(2):
            bytes_ = tl.where(pixel // 4 == word, label << (pixel % 4 * 8), 0)
            place = column + start + 4 * word
            stored = inside & (place >= 0) & (place < width)
            tl.store(labels + (row.to(tl.int64) * width + place) // 4, tl.sum(bytes_, axis=0), mask=stored)
    else:
        place = column[None, :] + start + pixel
        stored = inside[None, :] & (place >= 0) & (place < width) & (start + pixel < STRIDE)
        tl.store(labels + row.to(tl.int64)[None, :] * width + place, label.to(tl.uint8), mask=stored)


@triton.jit(do_not_specialize=["channels", "rows", "columns", "height", "width", "blocks"])
def label_map_upsampled_kernel(
    logits,  # [N, M, h, w]
    labels,  # [N, H, W] uint8, with WORDS [N, H, W / 4] int32
    channels, rows, columns, height, width, blocks,
    STRIDE: tl.constexpr, SOFTMAX: tl.constexpr, WORDS: tl.constexpr, PIXELS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decide the pixels of TILE cells: the highest channel, and with sigmoid heads only one above 0."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    cell = tl.program_id(0) % blocks * TILE + tl.arange(0, TILE)
    exists = cell < (rows + 1) * (columns + 1)
    plane = rows.to(tl.int64) * columns
    low = logits + image * channels * plane
    labels += image * height * width // (4 if WORDS else 1)

    best_a = tl.full([TILE], NOTHING if SOFTMAX else 0.0, tl.float32)
    label_a = tl.zeros([TILE], tl.int32)
    best_b, best_c, best_d, floor = best_a, best_a, best_a, best_a
    label_b, label_c, label_d = label_a, label_a, label_a
    for channel in range(channels):
        number = channel if SOFTMAX else channel + 1
        a, b, c, d = load_corners(low + channel * plane, cell, exists, rows, columns)
        best_a, label_a = leads(a, number, best_a, label_a)
        best_b, label_b = leads(b, number, best_b, label_b)
        best_c, label_c = leads(c, number, best_c, label_c)
        best_d, label_d = leads(d, number, best_d, label_d)
        lowest, _, finite = corner_range(a, b, c, d)
        floor = tl.maximum(floor, tl.where(finite, lowest, NOTHING))
    unsettled = exists & ((label_a != label_b) | (label_a != label_c) | (label_a != label_d))
    unsettled |= tl.maximum(tl.maximum(best_a, best_b), tl.maximum(best_c, best_d)) == INFINITY
    look = tl.max(unsettled.to(tl.int32), axis=0) != 0

    # The channels that may win a pixel of an unsettled cell: those whose highest corner is not below another's lowest.
    first_channels, last_channels = tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    largest = tl.zeros([TILE], tl.float32)
    if look:
        for channel in range(channels):
            a, b, c, d = load_corners(low + channel * plane, cell, exists, rows, columns)
            lowest, highest, finite = corner_range(a, b, c, d)
            may_win = unsettled & ((highest >= floor) | (finite == 0))
            size = tl.where(finite, tl.maximum(tl.abs(lowest), tl.abs(highest)), INFINITY)
            largest = tl.where(may_win, tl.maximum(largest, size), largest)
            bit = tl.max(may_win.to(tl.int32), axis=0).to(tl.int64) << (channel % 64)
            first_channels |= tl.where(channel < 64, bit, 0)
            last_channels |= tl.where(channel < 64, 0, bit)

    margin = largest * (16.0 * STRIDE * STRIDE) * MARGIN
    top, column = first_pixel(cell, columns, STRIDE)
    for y in range(STRIDE):
        for start in range(0, STRIDE, PIXELS):
            label = tl.broadcast_to(label_a[None, :], [PIXELS, TILE])
            if look:
                x = start + tl.arange(0, PIXELS)
                found, doubtful = nearly_decided(
                    low, cell, exists, channels, rows, columns, plane, first_channels, last_channels, y, x, margin,
                    STRIDE, SOFTMAX, PIXELS, TILE,
                )  # fmt: skip
                if tl.max(tl.max((doubtful & unsettled[None, :]).to(tl.int32), axis=0), axis=0) != 0:
                    found = decided(
                        low, cell, exists, channels, rows, columns, plane, first_channels, last_channels, y, x,
                        STRIDE, SOFTMAX, PIXELS, TILE,
                    )  # fmt: skip
                label = tl.where(unsettled[None, :], found, label)
            write_row(labels, label, top + y, column, start, exists, height, width, STRIDE, WORDS, PIXELS)


def label_map_upsampled(
    logits: Tensor, images: int, channels: int, grid: tuple[int, int, int], softmax: bool, labels: Tensor
) -> None:
    """Write the results of `smile_fast.ops.reference.label_map_upsampled`; `grid` is (H, W, stride)."""
    height, width, stride = grid
    rows, columns = logits.shape[2:]
    blocks = -(-(rows + 1) * (columns + 1) // TILE)
    words = stride % 8 == 0 and width % 4 == 0  # a cell begins at a multiple of 4 pixels, and so does a row
    if labels.numel():
        label_map_upsampled_kernel[(images * blocks,)](
            *(logits, labels.view(-1).view(int32) if words else labels),
            *(channels, rows, columns, height, width, blocks),
            STRIDE=stride,
            SOFTMAX=softmax,
            WORDS=words,
            PIXELS=min(8, triton.next_power_of_2(stride)),
            TILE=TILE,
            num_warps=1,
            **ROUNDING,
        )
