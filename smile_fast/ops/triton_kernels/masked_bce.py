"""masked_bce in Triton: label counts, then loss and gradient in one pass over the logits, then a final sum.

A program owns a run of voxels of one image. It reads their labels once, looks up the words of known and positive bits
of 32 organs at a time, and goes through the organs in groups. A group for which no voxel of the run is known costs
no read of its logits. Every program leaves one partial sum an organ; the final sum adds them in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.triton_kernels.core import INTERPRETED, Configuration
from smile_fast.ops.triton_kernels.counts import compute_loss
from smile_fast.ops.triton_kernels.numerics import bce, either, join, log1p

CONFIGURATIONS = (
    (Configuration({"BLOCK": 128, "GROUP": 2}),)
    if INTERPRETED
    else tuple(
        Configuration({"BLOCK": block, "GROUP": group}, warps, registers=128)
        for block, group, warps in ((1024, 2, 8), (1024, 1, 4), (512, 2, 4), (2048, 1, 8), (512, 1, 4))
    )
)


@triton.jit
def masked_bce_kernel(
    logits,  # [B, K, voxels]
    labels,  # [B, voxels] uint8
    table,  # [B, 256, 2, words] int32
    gradient,  # [B, K, voxels]; may be the logits
    partials,  # [B, K, blocks] float32
    total,  # [1] int64: known pairs
    organs, words, voxels, blocks,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, PRECISE: tl.constexpr, WITH_GRAD: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Loss, its partial sums and its gradient for BLOCK voxels of one image, all organs."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    voxel = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = voxel < voxels
    label = tl.load(labels + image * voxels + voxel, mask=inside, other=0).to(tl.int32)
    rows = table + (image * 256 + label) * 2 * words
    scale = 1.0
    if MEAN:
        scale = (1.0 / tl.maximum(tl.load(total), 1).to(tl.float64)).to(tl.float32)
    for word in range(words):
        known_word = tl.load(rows + word, mask=inside, other=0)
        positive_word = tl.load(rows + words + word, mask=inside, other=0)
        any_word = tl.reduce(known_word, 0, either)
        first = word * 32
        for start in range(0, tl.minimum(organs - first, 32), GROUP):
            bit = start + tl.arange(0, GROUP)[:, None]  # [GROUP, 1]
            exists = first + bit < organs
            place = (image * organs + first + bit) * voxels + voxel[None, :]  # [GROUP, BLOCK]
            writes = exists & inside[None, :]
            wanted = (any_word >> bit) & 1  # a row without any known voxel is not read
            if ((any_word >> start) & ((1 << GROUP) - 1)) != 0:
                logit = tl.load(logits + place, mask=writes & (wanted != 0), other=0.0).to(tl.float32)
                known = ((known_word[None, :] >> bit) & 1) != 0
                positive = ((positive_word[None, :] >> bit) & 1) != 0
                linear, e, slope = bce(logit, known, positive, PRECISE)
                if WITH_GRAD:
                    tl.store(gradient + place, (slope * scale).to(gradient.dtype.element_ty), mask=writes)
                # One logarithm for four voxels.
                e0, e1 = tl.split(e.reshape(GROUP, BLOCK // 2, 2))
                e0, e1 = tl.split(join(e0, e1).reshape(GROUP, BLOCK // 4, 2))
                l0, l1 = tl.split(linear.reshape(GROUP, BLOCK // 2, 2))
                l0, l1 = tl.split((l0 + l1).reshape(GROUP, BLOCK // 4, 2))
                sums = tl.sum(log1p(join(e0, e1)) + (l0 + l1), axis=1)  # [GROUP]
            else:
                sums = tl.zeros([GROUP], tl.float32)
                if WITH_GRAD:
                    tl.store(gradient + place, tl.zeros([GROUP, BLOCK], gradient.dtype.element_ty), mask=writes)
            organ = first + start + tl.arange(0, GROUP)
            tl.store(partials + (image * organs + organ) * blocks + block, sums, mask=organ < organs)


def masked_bce(
    logits: Tensor, labels: Tensor, table: Tensor, batch: int, organs: int, voxels: int,
    sums: Tensor, counts: Tensor, gradient: Tensor | None, mean: bool,
) -> None:  # fmt: skip
    """Write the results of `smile_fast.ops.reference.masked_bce`; the gradient may be the logits."""

    def main(configuration: Configuration, total: Tensor) -> Tensor:
        blocks = -(-voxels // configuration.constants["BLOCK"])
        partials = logits.new_empty((batch, organs, blocks), dtype=torch.float32)
        masked_bce_kernel[(batch * blocks,)](
            *(logits, labels, table, logits if gradient is None else gradient, partials, total),
            *(organs, table.shape[-1], voxels, blocks),
            PRECISE=logits.dtype == torch.float32,
            WITH_GRAD=gradient is not None,
            MEAN=mean,
            **configuration.launch_options,
        )
        return partials

    key = ("masked_bce",)
    compute_loss(key, CONFIGURATIONS, main, logits, labels, table, sums, counts, gradient, mean)
