"""Both ends of the two losses: label counts before the main kernel, sums and counts an organ after it."""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.triton_kernels.core import INTERPRETED, ROUNDING, Configuration, size_bucket, tuned
from smile_fast.ops.triton_kernels.numerics import population

LABELS = tl.constexpr(256)
CHUNK = 256 if INTERPRETED else 4096  # labels a step of the histogram
PROGRAMS = 1024  # enough to fill a GPU; each adds one histogram to the global one
PARTIALS = 1024  # partial sums a step of the final sum


@triton.jit
def histogram_kernel(
    labels,  # [B, voxels] uint8
    table,  # [B, 256, 2, words] int32
    histogram,  # [B, 256] int64, zero
    total,  # [1] int64, zero: known (voxel, organ) pairs
    voxels, words, programs, organs,
    CHUNK: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Count the labels of every image, and with MEAN the known pairs that they stand for.

    Integers add up to the same sum in any order: atomics do not cost the determinism.
    """
    image = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    lanes = tl.arange(0, CHUNK)
    counts = tl.zeros([LABELS], tl.int32)
    for start in range(program.to(tl.int64) * CHUNK, voxels, programs.to(tl.int64) * CHUNK):
        inside = start + lanes < voxels
        label = tl.load(labels + image * voxels + start + lanes, mask=inside, other=0)
        counts += tl.histogram(label.to(tl.int32), LABELS, mask=inside)
    values = tl.arange(0, LABELS)
    tl.atomic_add(histogram + image * LABELS + values, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
    if MEAN:
        organs_known = tl.zeros([LABELS], tl.int32)
        for word in range(words):
            known = tl.load(table + (image * LABELS + values) * 2 * words + word)
            used = tl.minimum(organs - word * 32, 32)  # bits beyond K mean nothing
            organs_known += population(known.to(tl.uint32) << (32 - used).to(tl.uint32))
        pairs = tl.sum(counts.to(tl.int64) * organs_known)
        tl.atomic_add(total, pairs, sem="relaxed")


@triton.jit
def finish_kernel(
    partials,  # [B, K, parts] float32
    histogram,  # [B, 256] int64
    table,  # [B, 256, 2, words] int32
    sums,  # [B, K] float64
    counts,  # [B, K] int64
    organs, words, parts,
    PARTIALS: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of one (image, organ) in float64, in a fixed order, and its known voxels."""
    pair = tl.program_id(0).to(tl.int64)
    image, organ = pair // organs, pair % organs
    lanes = tl.arange(0, PARTIALS)
    sum_ = tl.zeros([PARTIALS], tl.float64)
    for start in range(0, parts, PARTIALS):
        part = tl.load(partials + pair * parts + start + lanes, mask=start + lanes < parts, other=0.0)
        sum_ += part.to(tl.float64)
    tl.store(sums + pair, tl.sum(sum_))
    values = tl.arange(0, LABELS)
    known = tl.load(table + (image * LABELS + values) * 2 * words + organ // 32)
    known = (known >> (organ % 32).to(tl.int32)) & 1
    tl.store(counts + pair, tl.sum(tl.load(histogram + image * LABELS + values) * known))


def count_labels(labels: Tensor, table: Tensor, organs: int, mean: bool) -> tuple[Tensor, Tensor]:
    """Return histogram [B, 256] int64 of contiguous labels, and with `mean` [1] int64, the number of known pairs."""
    batch, voxels = labels.shape[0], labels[0].numel()
    memory = torch.zeros(batch * 256 + 1, dtype=torch.int64, device=labels.device)
    histogram, total = memory[:-1].view(batch, 256), memory[-1:]
    programs = max(1, min(-(-voxels // CHUNK), PROGRAMS // batch))
    histogram_kernel[(programs * batch,)](
        labels, table, histogram, total, voxels, table.shape[-1], programs, organs, CHUNK=CHUNK, MEAN=mean, **ROUNDING
    )
    return histogram, total


def count_values(labels: Tensor) -> Tensor:
    """Return how often each value occurs in contiguous uint8 labels: [256] int64."""
    nothing_known = labels.new_empty((1, 256, 2, 1), dtype=torch.int32)  # not read without `mean`
    return count_labels(labels.view(1, -1), nothing_known, 1, mean=False)[0][0]


def compute_loss(
    key: tuple[object, ...],  # op, and more that the fastest configuration may depend on
    configurations: Sequence[Configuration],
    main: Callable[[Configuration, Tensor], Tensor],
    logits: Tensor, labels: Tensor, table: Tensor, sums: Tensor, counts: Tensor, gradient: Tensor | None,
    mean: bool = False,
) -> None:  # fmt: skip
    """Write sums [B, K] and counts [B, K] of a loss; `main` writes the gradient.

    It gets a configuration and [1] int64, with `mean` the known pairs, and returns partial sums [B, K, parts] float32.
    """
    if labels.numel() == 0:
        for result in (sums, counts, gradient):
            if result is not None:
                result.zero_()
        return
    organs = logits.shape[1]
    histogram, total = count_labels(labels, table, organs, mean)
    fitting = [c for c in configurations if c.constants["GROUP"] <= organs] or configurations[-1:]
    key = (*key, logits.device, logits.dtype, organs, size_bucket(labels.numel()), gradient is None)
    overwritten = logits if gradient is logits else None
    partials = tuned(key, fitting, lambda configuration: main(configuration, total), overwritten=overwritten)
    finish_kernel[(sums.numel(),)](
        *(partials, histogram, table, sums, counts, organs, table.shape[-1], partials.shape[-1]),
        PARTIALS=PARTIALS,
        **ROUNDING,
    )
