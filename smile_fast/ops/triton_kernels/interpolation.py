"""Bilinear interpolation by a stride in float64, bit for bit that of `smile_fast.ops.reference.upsample_by_stride`.

Weights are integers: a logit of at most 32 bits times a weight is exact, so that only the order of the sum matters.
"""

import triton
import triton.language as tl

from smile_fast.ops.triton_kernels.core import INTERPRETED, Configuration

BLOCK = 1024 if INTERPRETED else 512  # pixels of a program; more in float64 would not fit in the registers
REGISTERS = 128
LAUNCH_OPTIONS = Configuration({"BLOCK": BLOCK}, registers=REGISTERS).launch_options


@triton.jit
def corners_of_axis(pixel, size, STRIDE: tl.constexpr):
    """Return the two low pixels between which each pixel lies, and their weights, which add up to 2 STRIDE."""
    doubled = 2 * pixel + 1 - STRIDE  # position in 1 / (2 STRIDE) of a low pixel
    lower = (doubled + 2 * STRIDE) // (2 * STRIDE) - 1  # the numerator is positive: the floor
    weight = doubled - lower * (2 * STRIDE)
    near, far = tl.maximum(lower, 0), tl.minimum(lower + 1, size - 1)
    return near, far, (2 * STRIDE - weight).to(tl.float64), weight.to(tl.float64)


@triton.jit
def load_logits(place, inside):
    """Load logits as float64."""
    return tl.load(place, mask=inside, other=0.0).to(tl.float32).to(tl.float64)


@triton.jit
def interpolate(low, pixel, inside, rows, columns, width, STRIDE: tl.constexpr):
    """Interpolate one channel of logits: [BLOCK] float64, the interpolated logits times (2 STRIDE)^2.

    `low` points to logits [rows, columns]; `pixel` [BLOCK] int32 are flat indices in a slice of `width` pixels a row,
    and `inside` [BLOCK] says whether there is such a pixel.
    """
    above, below, top_weight, bottom_weight = corners_of_axis(pixel // width, rows, STRIDE)
    left, right, left_weight, right_weight = corners_of_axis(pixel % width, columns, STRIDE)
    high = load_logits(low + above * columns + left, inside) * (top_weight * left_weight)
    high += load_logits(low + above * columns + right, inside) * (top_weight * right_weight)
    high += load_logits(low + below * columns + left, inside) * (bottom_weight * left_weight)
    high += load_logits(low + below * columns + right, inside) * (bottom_weight * right_weight)
    return high
