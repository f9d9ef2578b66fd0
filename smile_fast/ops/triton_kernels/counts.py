"""How often each label value occurs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.triton_kernels.core import INTERPRETED, ROUNDING

LABELS = tl.constexpr(256)
CHUNK = 256 if INTERPRETED else 4096  # labels a step of the histogram
PROGRAMS = 1024  # enough to fill a GPU; each adds one histogram to the global one


@triton.jit
def histogram_kernel(
    labels,  # [voxels] uint8
    histogram,  # [256] int64, zero
    voxels,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Count labels. Integers add up to the same sum in any order: atomics do not cost the determinism."""
    lanes = tl.arange(0, CHUNK)
    counts = tl.zeros([LABELS], tl.int32)
    first = tl.cast(tl.program_id(0), tl.int64) * CHUNK
    for start in range(first, voxels, tl.cast(tl.num_programs(0), tl.int64) * CHUNK):
        inside = start + lanes < voxels
        label = tl.load(labels + start + lanes, mask=inside, other=0)
        counts += tl.histogram(label.to(tl.int32), LABELS, mask=inside)
    values = tl.arange(0, LABELS)
    tl.atomic_add(histogram + values, counts.to(tl.int64), mask=counts > 0, sem="relaxed")


def count_values(labels: Tensor) -> Tensor:
    """Return how often each value occurs in contiguous uint8 labels: [256] int64."""
    histogram = labels.new_zeros(256, dtype=torch.int64)
    programs = max(1, min(-(-labels.numel() // CHUNK), PROGRAMS))
    histogram_kernel[(programs,)](labels, histogram, labels.numel(), CHUNK=CHUNK, **ROUNDING)
    return histogram
