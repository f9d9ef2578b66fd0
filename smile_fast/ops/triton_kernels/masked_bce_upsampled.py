"""masked_bce_upsampled in Triton: interpolation, loss, gradient and its transpose in registers.

The centres of the low pixels cut space into cells: cell c of an axis lies between the low pixels c and c + 1, and holds
the high-resolution voxels that are interpolated between them; cell -1 and the last one hold those beyond the outer low
pixels. A lane owns a cell: it goes through the cell's voxels with the logits of its corners at hand, and adds up what
each corner's gradient gets. Then a low pixel takes its share from the cells around it, which are lanes of the same
program: programs overlap by one cell an axis instead of adding to each other's results. Nothing is kept at full
resolution. Two launches: `known_counts` says what comes before the loss, and how the last programs add up.
"""

import functools
import itertools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.reference import divides_gradient
from smile_fast.ops.triton_kernels.core import INTERPRETED, Configuration, size_bucket, tuned
from smile_fast.ops.triton_kernels.known_counts import count_known, is_last, known_pairs, store_loss, sum_channels
from smile_fast.ops.triton_kernels.numerics import bce, join, log1p

FACTORS = tl.constexpr(64)  # of a product of 1 + e, each at most 2, before its logarithm is taken

CONFIGURATIONS: dict[bool, tuple[Configuration, ...]] = {
    volume: (Configuration({"CELLS": 64, "GROUP": 2, "UNROLL": 2}),)
    if INTERPRETED
    else tuple(
        Configuration({"CELLS": cells, "GROUP": group, "UNROLL": unroll}, warps, registers=168)
        for cells, group, unroll, warps in choices
    )
    for volume, choices in (
        (False, ((128, 2, 2, 4), (128, 2, 4, 4), (128, 2, 1, 4), (256, 4, 1, 8), (256, 2, 2, 8), (128, 1, 4, 4))),
        (True, ((128, 2, 1, 4), (256, 1, 2, 8), (128, 1, 2, 4))),
    )
}
"""By whether logits are volumes."""


@triton.jit
def first_voxel(cell, low, high):
    """Return the first voxel of a cell of an axis: the smallest v with (v + 1/2) low / high - 1/2 >= cell.

    In int32, hence core.LARGEST_AXIS: a division of 64-bit integers is a function call, around which registers spill.
    """
    numerator = tl.maximum(2 * high * cell + high - low, 0)
    return tl.where(cell < low, tl.minimum((numerator + 2 * low - 1) // (2 * low), high), high)


@triton.jit
def cell_geometry(cell, low, high):
    """Return first voxel and number of voxels of a cell, and where they lie: base + i * step between its low pixels.

    All voxels of an outer cell have the value of the outer low pixel: the far end of cell -1, the near end of the last.
    """
    first = first_voxel(cell, low, high)
    count = first_voxel(cell + 1, low, high) - first
    inner = (cell >= 0) & (cell < low - 1)
    offset = (2 * first + 1) * low - high - 2 * high * cell  # in units of 1 / (2 high), exact
    base = tl.where(inner, offset.to(tl.float32) / tl.cast(2 * high, tl.float32), tl.where(cell < 0, 1.0, 0.0))
    step = tl.where(inner, tl.cast(low, tl.float32) / tl.cast(high, tl.float32), 0.0)
    return first, count, base, step


@triton.jit
def lerp(near, far, share):
    """Interpolate linearly."""
    return tl.fma(share, far - near, near)


@triton.jit
def load_corner(channel, z, y, x, low_z, low_y, low_x, mask):
    """Load the logits [GROUP, CELLS] of one corner of every cell; beyond the outer low pixels, theirs."""
    z = tl.minimum(tl.maximum(z, 0), low_z - 1)
    y = tl.minimum(tl.maximum(y, 0), low_y - 1)
    x = tl.minimum(tl.maximum(x, 0), low_x - 1)
    place = (z.to(tl.int64) * low_y + y) * low_x + x
    return tl.load(channel + place[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def from_neighbour(near, far, distance, GROUP: tl.constexpr, CELLS: tl.constexpr):
    """Return what low pixels get along one axis: as near end of their own cell and as far end of the one before it."""
    before = tl.maximum(tl.arange(0, CELLS) - distance, 0)[None, :].broadcast_to(GROUP, CELLS)
    return near + tl.gather(far, before, axis=1)


@triton.jit
def slice_loss(
    n00, n01, n10, n11,  # [GROUP, CELLS] logits of the corners (y, x)
    labels, codes, inside, width,
    count_y, base_y, step_y, count_x, base_x, step_x, most_y, most_x,
    GROUP: tl.constexpr, UNROLL: tl.constexpr, WITH_GRAD: tl.constexpr,
):  # fmt: skip
    """Go through the voxels of one slice of every cell; [GROUP, CELLS] loss and the gradients of its corners.

    `labels` are [CELLS] pointers to the first label of the slice, `codes` points to the group's; `inside` [CELLS] says
    whether the cell has this slice; a row has `width` labels, and no cell more than most_y x most_x voxels.
    """
    zero = tl.zeros_like(n00)
    known_bit = (1 << tl.arange(0, GROUP))[:, None]
    loss, g00, g01, g10, g11 = zero, zero, zero, zero, zero
    for y in range(most_y):
        share_y = (base_y + y * step_y)[None, :]
        near, far = lerp(n00, n10, share_y), lerp(n01, n11, share_y)
        near_gradient, far_gradient = zero, zero
        row_inside = inside & (y < count_y)
        for start in range(0, most_x, FACTORS):
            product = zero
            for x in tl.range(start, tl.minimum(start + FACTORS, most_x), loop_unroll_factor=UNROLL):
                voxel_inside = row_inside & (x < count_x)
                label = tl.load(labels + y * width + x, mask=voxel_inside, other=0).to(tl.int32)
                code = tl.load(codes + label, mask=voxel_inside, other=0).to(tl.int32)[None, :]
                share_x = (base_x + x * step_x)[None, :]
                known, positive = (code & known_bit) != 0, (code & (known_bit << GROUP)) != 0
                linear, e, gradient = bce(lerp(near, far, share_x), known, positive)
                loss += linear
                product = join(product, e)
                if WITH_GRAD:
                    near_gradient = tl.fma(gradient, 1.0 - share_x, near_gradient)
                    far_gradient = tl.fma(gradient, share_x, far_gradient)
            loss += log1p(product)
        if WITH_GRAD:
            g00 = tl.fma(near_gradient, 1.0 - share_y, g00)
            g01 = tl.fma(far_gradient, 1.0 - share_y, g01)
            g10 = tl.fma(near_gradient, share_y, g10)
            g11 = tl.fma(far_gradient, share_y, g11)
    return loss, g00, g01, g10, g11


@triton.jit
def slice_gradient(g00, g01, g10, g11, size_x, GROUP: tl.constexpr, CELLS: tl.constexpr):
    """Return what low pixels get within a slice, from the gradients of the corners (y, x) of its cells."""
    near = from_neighbour(g00, g01, 1, GROUP, CELLS)
    far = from_neighbour(g10, g11, 1, GROUP, CELLS)
    return from_neighbour(near, far, size_x, GROUP, CELLS)


@triton.jit
def masked_bce_upsampled_kernel(
    logits,  # [B, K, d, h, w]
    labels,  # [B, D, H, W] uint8
    codes,  # [B, groups, 256] uint8
    counts,  # [B, parts, K] int32
    pairs,  # [B, parts] int64
    tickets,  # [B * groups + 1] int32, zero
    gradient,  # [B, K, d, h, w]
    partials,  # [B, K, tiles] float32
    sums,  # [B, K] float64
    known,  # [B, K] int64
    loss,  # [] float32
    batch, organs, parts,
    low_z, low_y, low_x,  # d, h, w
    high_z, high_y, high_x,  # D, H, W
    tiles_z, tiles_y, tiles_x,
    size_z, size_y, size_x,  # cells of a tile
    CELLS: tl.constexpr, GROUP: tl.constexpr, UNROLL: tl.constexpr, VOLUME: tl.constexpr, WITH_GRAD: tl.constexpr,
    MEAN: tl.constexpr, DIVIDES: tl.constexpr,
):  # fmt: skip
    """Partial sums and gradient of the low pixels of one tile, GROUP organs; the last programs make sums and loss.

    With MEAN the loss is divided by the known pairs, with DIVIDES the gradient.
    """
    tiles = tiles_z * tiles_y * tiles_x
    groups = tl.cdiv(organs, GROUP)
    tile = tl.program_id(0) % tiles
    group = (tl.program_id(0) // tiles) % groups
    image = tl.cast(tl.program_id(0) // tiles // groups, tl.int64)
    lane = tl.arange(0, CELLS)
    lane_x, lane_y, lane_z = lane % size_x, (lane // size_x) % size_y, lane // (size_x * size_y)
    used = lane_z < size_z
    # Tiles overlap by one cell, whose low pixels belong to the tile before.
    x = (tile % tiles_x) * (size_x - 1) + lane_x - 1
    y = (tile // tiles_x % tiles_y) * (size_y - 1) + lane_y - 1
    first_x, count_x, base_x, step_x = cell_geometry(x, low_x, high_x)
    first_y, count_y, base_y, step_y = cell_geometry(y, low_y, high_y)
    most_x, most_y = tl.cdiv(high_x, low_x), tl.cdiv(high_y, low_y)
    z, first_z, count_z, most_z = lane_z, lane_z * 0, used.to(tl.int32), 1
    if VOLUME:
        z = tile // tiles_x // tiles_y * (size_z - 1) + lane_z - 1
        first_z, count_z, base_z, step_z = cell_geometry(z, low_z, high_z)
        count_z = tl.where(used, count_z, 0)
        most_z = tl.cdiv(high_z, low_z)

    first_organ = group * GROUP
    exists = first_organ + tl.arange(0, GROUP) < organs
    codes += (image * groups + group) * 256
    slice_stride = tl.cast(high_y, tl.int64) * high_x
    pixels = labels + (image * high_z + first_z) * slice_stride + first_y.to(tl.int64) * high_x + first_x

    # Is anything known at all?
    seen = tl.zeros([CELLS], tl.uint8)
    for iz in range(most_z):
        for iy in range(most_y):
            for ix in range(most_x):
                there = (iz < count_z) & (iy < count_y) & (ix < count_x)
                label = tl.load(pixels + iz * slice_stride + iy * high_x + ix, mask=there, other=0).to(tl.int32)
                seen |= tl.load(codes + label, mask=there, other=0)

    zero = tl.zeros([GROUP, CELLS], tl.float32)
    cell_loss, low_gradient = zero, zero
    if tl.max(seen.to(tl.int32) & ((1 << GROUP) - 1), axis=0) != 0:
        organ = image * organs + first_organ + tl.arange(0, GROUP)[:, None]
        channel = logits + organ * low_z * low_y * low_x  # [GROUP, 1]
        mask = exists[:, None] & used[None, :]
        a00 = load_corner(channel, z, y, x, low_z, low_y, low_x, mask)
        a01 = load_corner(channel, z, y, x + 1, low_z, low_y, low_x, mask)
        a10 = load_corner(channel, z, y + 1, x, low_z, low_y, low_x, mask)
        a11 = load_corner(channel, z, y + 1, x + 1, low_z, low_y, low_x, mask)
        if VOLUME:
            b00 = load_corner(channel, z + 1, y, x, low_z, low_y, low_x, mask)
            b01 = load_corner(channel, z + 1, y, x + 1, low_z, low_y, low_x, mask)
            b10 = load_corner(channel, z + 1, y + 1, x, low_z, low_y, low_x, mask)
            b11 = load_corner(channel, z + 1, y + 1, x + 1, low_z, low_y, low_x, mask)
            f00, f01, f10, f11 = zero, zero, zero, zero
            n00, n01, n10, n11 = zero, zero, zero, zero
            for iz in range(most_z):
                share = (base_z + iz * step_z)[None, :]
                slice_sum, g00, g01, g10, g11 = slice_loss(
                    lerp(a00, b00, share), lerp(a01, b01, share), lerp(a10, b10, share), lerp(a11, b11, share),
                    pixels + iz * slice_stride, codes, iz < count_z, high_x,
                    count_y, base_y, step_y, count_x, base_x, step_x, most_y, most_x, GROUP, UNROLL, WITH_GRAD,
                )  # fmt: skip
                cell_loss += slice_sum
                if WITH_GRAD:
                    f00, n00 = tl.fma(g00, share, f00), tl.fma(g00, 1.0 - share, n00)
                    f01, n01 = tl.fma(g01, share, f01), tl.fma(g01, 1.0 - share, n01)
                    f10, n10 = tl.fma(g10, share, f10), tl.fma(g10, 1.0 - share, n10)
                    f11, n11 = tl.fma(g11, share, f11), tl.fma(g11, 1.0 - share, n11)
            if WITH_GRAD:
                near_slice = slice_gradient(n00, n01, n10, n11, size_x, GROUP, CELLS)
                far_slice = slice_gradient(f00, f01, f10, f11, size_x, GROUP, CELLS)
                low_gradient = from_neighbour(near_slice, far_slice, size_x * size_y, GROUP, CELLS)
        else:
            cell_loss, g00, g01, g10, g11 = slice_loss(
                a00, a01, a10, a11, pixels, codes, used, high_x,
                count_y, base_y, step_y, count_x, base_x, step_x, most_y, most_x, GROUP, UNROLL, WITH_GRAD,
            )  # fmt: skip
            if WITH_GRAD:
                low_gradient = slice_gradient(g00, g01, g10, g11, size_x, GROUP, CELLS)

    # The overlap's cells are counted by the tile before, but for those outside of the first low pixels.
    own = used & ((lane_y > 0) | (y < 0)) & ((lane_x > 0) | (x < 0))
    stored = used & (lane_y > 0) & (lane_x > 0) & (y < low_y) & (x < low_x)
    if VOLUME:
        own &= (lane_z > 0) | (z < 0)
        stored &= (lane_z > 0) & (z < low_z)
    organ = first_organ + tl.arange(0, GROUP)
    of_tile = tl.sum(tl.where(own[None, :], cell_loss, 0.0), axis=1)  # [GROUP]
    tl.store(partials + (image * organs + organ) * tiles + tile, of_tile, mask=exists)
    if WITH_GRAD:
        place = (((image * organs + organ)[:, None] * low_z + z) * low_y + y) * low_x + x  # [GROUP, CELLS]
        if DIVIDES:
            low_gradient *= (1.0 / known_pairs(pairs, batch * parts)).to(tl.float32)
        value = low_gradient.to(gradient.dtype.element_ty)
        tl.store(gradient + place, value, mask=exists[:, None] & stored[None, :])

    if is_last(tickets + image * groups + group, tiles):
        sum_channels(partials, counts, sums, known, image, organs, first_organ, tiles, parts, GROUP)
        if is_last(tickets + batch * groups, batch * groups):
            divisor = 1.0
            if MEAN:
                divisor = known_pairs(pairs, batch * parts)
            store_loss(loss, sums, batch * organs, divisor)


@functools.lru_cache(maxsize=256)
def tile_shape(low: tuple[int, ...], cells: int) -> tuple[int, ...]:
    """Return the tile of at most `cells` cells with which the fewest tiles cover the low pixels (d, h, w) or (h, w).

    It has at least 2 cells an axis: n cells cover n - 1 low pixels. Of tiles that cost the same it is the one whose
    last axis is the longest, for locality.
    """
    outer = itertools.product(*(range(2, min(n + 1, cells) + 1) for n in low[:-1]))
    shapes = [(*sizes, min(cells // math.prod(sizes), low[-1] + 1)) for sizes in outer]
    fitting = (shape for shape in shapes if shape[-1] >= 2)
    return min(fitting, key=lambda shape: (math.prod(tile_counts(low, shape)), -shape[-1]))


def tile_counts(low: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of tiles along every axis."""
    return tuple(-(-n // (size - 1)) for n, size in zip(low, shape, strict=True))


def masked_bce_upsampled(
    logits: Tensor, labels: Tensor, table: Tensor, batch: int, organs: int, low: tuple[int, ...], high: tuple[int, ...],
    loss: Tensor, sums: Tensor, counts: Tensor, gradient: Tensor | None, mean: bool,
) -> None:  # fmt: skip
    """Write the results of `smile_fast.ops.reference.masked_bce_upsampled`; an image is a volume of one slice."""
    if labels.numel() == 0:
        for result in (loss, sums, counts, gradient):
            if result is not None:
                result.zero_()
        return
    volume = logits.ndim == 5

    def run(configuration: Configuration) -> None:
        shape = tile_shape(low[-logits.ndim + 2 :], configuration.constants["CELLS"])
        tiles = tile_counts(low[-logits.ndim + 2 :], shape)
        group = configuration.constants["GROUP"]
        groups = -(-organs // group)
        known, pairs, codes, tickets = count_known(labels, table, organs, group, batch * groups + 1)
        partials = logits.new_empty((batch, organs, math.prod(tiles)), dtype=torch.float32)
        flat = () if volume else (1,)
        masked_bce_upsampled_kernel[(batch * groups * partials.shape[-1],)](
            *(logits, labels, codes, known, pairs, tickets, logits if gradient is None else gradient),
            *(partials, sums, counts, loss, batch, organs, known.shape[1]),
            *(*low, *high, *flat, *tiles, *flat, *shape),
            VOLUME=volume,
            WITH_GRAD=gradient is not None,
            MEAN=mean,
            DIVIDES=divides_gradient(logits.dtype, mean),
            **configuration.launch_options,
        )

    fitting = [c for c in CONFIGURATIONS[volume] if c.constants["GROUP"] <= organs] or CONFIGURATIONS[volume][-1:]
    size = size_bucket(labels.numel())
    key = ("masked_bce_upsampled", volume, logits.device, logits.dtype, organs, size, gradient is None)
    tuned(key, fitting, run)
