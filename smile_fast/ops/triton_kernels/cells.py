"""How an image lies over the low pixels of its logits: cells between four low pixels, of STRIDE x STRIDE pixels.

Cell c of an axis holds the pixels between the low pixels c - 1 and c; there is one cell more than low pixels, and
outside of the first and the last low pixel the border repeats. See csrc/core/upsampled_labels/cell_grid.h.

Weights are integers that add up to (2 STRIDE)^2: a logit of at most 32 bits times a weight is exact in float64, so that
only the order of the sum matters, which is that of `smile_fast.ops.reference.upsample_by_stride`. Rounding is
monotonous: an interpolated value never leaves the range of its corners, and where one channel's corners are not below
another's, neither are its pixels.
"""

import triton
import triton.language as tl


@triton.jit
def load_corners(low, cell, exists, rows, columns):
    """Load the corners of cells as float32: top left, top right, bottom left, bottom right.

    `low` points to logits [rows, columns]; `cell` are flat indices of the [rows + 1, columns + 1] cells.
    """
    row, column = cell // (columns + 1), cell % (columns + 1)
    above, below = tl.maximum(row - 1, 0) * columns, tl.minimum(row, rows - 1) * columns
    left, right = tl.maximum(column - 1, 0), tl.minimum(column, columns - 1)
    top_left = tl.load(low + above + left, mask=exists, other=0.0).to(tl.float32)
    top_right = tl.load(low + above + right, mask=exists, other=0.0).to(tl.float32)
    bottom_left = tl.load(low + below + left, mask=exists, other=0.0).to(tl.float32)
    bottom_right = tl.load(low + below + right, mask=exists, other=0.0).to(tl.float32)
    return top_left, top_right, bottom_left, bottom_right


@triton.jit
def first_pixel(cell, columns, STRIDE: tl.constexpr):
    """Return row and column of the first pixel of cells; negative for the first cell of an axis."""
    row, column = cell // (columns + 1), cell % (columns + 1)
    return (row - 1) * STRIDE + STRIDE // 2, (column - 1) * STRIDE + STRIDE // 2


@triton.jit
def far_weight(pixel, STRIDE: tl.constexpr):
    """Return the weight of the far corner along one axis, for the pixels of a cell; the near one's is the rest."""
    return tl.zeros([], tl.int32) + 2 * pixel + (STRIDE + 1) % 2


@triton.jit
def corner_range(a, b, c, d):
    """Return the lowest and the highest of four corners, and whether all are finite.

    Infinite corners can make a NaN, of which a range knows nothing.
    """
    finite = (a - a) + (b - b) + (c - c) + (d - d) == 0
    return tl.minimum(tl.minimum(a, b), tl.minimum(c, d)), tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), finite


@triton.jit
def interpolate(a, b, c, d, top, bottom, left, right):
    """Return the interpolated value times (2 STRIDE)^2 in float64. The order of the sum is a promise."""
    value = a.to(tl.float64) * (top * left)
    value += b.to(tl.float64) * (top * right)
    value += c.to(tl.float64) * (bottom * left)
    value += d.to(tl.float64) * (bottom * right)
    return value
