"""The backward pass of the losses in Triton: a saved gradient, scaled where it is."""

import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.triton_kernels.core import INTERPRETED, ROUNDING

UNIT_FACTOR = tl.constexpr(1e-9)  # a factor this near to 1 changes no gradient of at most 32 bits
BLOCK = 64 if INTERPRETED else 1024
BLOCKS = 4 if INTERPRETED else 16  # of a program: few programs have to find out that there is nothing to do


@triton.jit
def scale_gradient_kernel(
    gradient,  # [channels, voxels]
    factors,  # [channels] float64
    voxels, parts,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Multiply a part of a channel by the channel's factor; touch nothing if that is 1."""
    channel = (tl.program_id(0) // parts).to(tl.int64)
    start = (tl.program_id(0) % parts).to(tl.int64) * (BLOCK * BLOCKS)
    factor = tl.load(factors + channel)
    if not (tl.abs(factor - 1.0) < UNIT_FACTOR):  # NaN is no 1
        narrow = factor.to(tl.float32)
        for block in range(BLOCKS):
            voxel = start + block * BLOCK + tl.arange(0, BLOCK)
            place = gradient + channel * voxels + voxel
            value = tl.load(place, mask=voxel < voxels, other=0.0).to(tl.float32) * narrow
            tl.store(place, value.to(gradient.dtype.element_ty), mask=voxel < voxels)


def scale_gradient(gradient: Tensor, factors: Tensor, channels: int, voxels: int) -> None:
    """Do what `smile_fast.ops.reference.scale_gradient` does; where a factor is 1 it costs no memory traffic."""
    parts = -(-voxels // (BLOCK * BLOCKS))
    if gradient.numel():
        sizing = {"BLOCK": BLOCK, "BLOCKS": BLOCKS, **ROUNDING}
        scale_gradient_kernel[(channels * parts,)](gradient, factors, voxels, parts, **sizing)
