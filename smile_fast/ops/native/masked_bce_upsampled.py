"""masked_bce_upsampled in C++, on the CPU: csrc/core/masked_bce_upsampled/masked_bce_upsampled.h."""

import torch
from torch import Tensor

from smile_fast.ops.checks import check_upsampled_loss
from smile_fast.ops.native.core import CORE, DTYPES, refused_dtype


def refusal(logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool) -> str:
    """Return why `masked_bce_upsampled` cannot take these arguments; empty when it can."""
    return refused_dtype(logits.dtype)


def masked_bce_upsampled(
    logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce_upsampled`; results as in `smile_fast.ops.reference.masked_bce_upsampled`."""
    # The op can be called without its public function, and a wrong size would read foreign memory.
    check_upsampled_loss(logits, labels, table, tuple(DTYPES), torch.device("cpu"))
    batch, organs, *low = logits.shape
    logits, labels, table = logits.contiguous(), labels.contiguous(), table.contiguous()
    sums = logits.new_empty((batch, organs), dtype=torch.float64)
    counts = logits.new_empty((batch, organs), dtype=torch.int64)
    grad = logits.new_empty(logits.shape if with_grad else (0,))
    CORE.masked_bce_upsampled(
        dtype=DTYPES[logits.dtype],
        logits=logits.data_ptr(),
        labels=labels.data_ptr(),
        table=table.data_ptr(),
        batch=batch,
        organs=organs,
        low=depth_height_width(low),
        high=depth_height_width(list(labels.shape[1:])),
        sums=sums.data_ptr(),
        counts=counts.data_ptr(),
        gradient=grad.data_ptr() if with_grad else 0,
        threads=torch.get_num_threads(),
    )
    return sums, counts, grad


def depth_height_width(spatial: list[int]) -> tuple[int, ...]:
    """Return the size of a volume, or that of an image as a volume of one slice."""
    return tuple([1] * (3 - len(spatial)) + spatial)
