"""masked_bce_upsampled in CUDA C++: csrc/core/masked_bce_upsampled/masked_bce_upsampled_cuda.h."""

import torch
from torch import Tensor

from smile_fast.ops.checks import check_upsampled_loss
from smile_fast.ops.native.core import DTYPES
from smile_fast.ops.native_cuda import core


def refusal(logits: Tensor, labels: Tensor, *others: object) -> str:
    """Return why `masked_bce_upsampled` cannot take these arguments; empty when it can."""
    width, columns = labels.shape[-1], max(logits.shape[-1], 1)
    if core.CORE is not None and -(-width // columns) > core.CORE.MAX_UPSAMPLED_STRIDE:
        return f"it takes at most {core.CORE.MAX_UPSAMPLED_STRIDE} voxels per logit along the width"
    return core.refusal(logits)


def masked_bce_upsampled(
    logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce_upsampled`; results as in `smile_fast.ops.reference.masked_bce_upsampled`."""
    # The op can be called without its public function, and a wrong size would read foreign memory.
    check_upsampled_loss(logits, labels, table, tuple(DTYPES), logits.device)
    batch, organs, *low = logits.shape
    high = list(labels.shape[1:])
    logits, labels, table = logits.contiguous(), labels.contiguous(), table.contiguous()
    sums = logits.new_empty((batch, organs), dtype=torch.float64)
    counts = logits.new_empty((batch, organs), dtype=torch.int64)
    grad = logits.new_empty(logits.shape if with_grad else (0,))
    core.queue(
        "masked_bce_upsampled",
        logits.device,
        dtype=DTYPES[logits.dtype],
        logits=logits.data_ptr(),
        labels=labels.data_ptr(),
        table=table.data_ptr(),
        batch=batch,
        organs=organs,
        low=[1] * (3 - len(low)) + low,
        high=[1] * (3 - len(high)) + high,
        sums=sums.data_ptr(),
        counts=counts.data_ptr(),
        gradient=grad.data_ptr() if with_grad else 0,
    )
    return sums, counts, grad
