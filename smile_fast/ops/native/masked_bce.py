"""masked_bce in C++, on the CPU: csrc/core/masked_bce/masked_bce.h."""

import math

import torch
from torch import Tensor

from smile_fast.ops.checks import check_loss
from smile_fast.ops.native.core import CORE, DTYPES, refused_dtype
from smile_fast.ops.native.memory import empty


def refusal(logits: Tensor, *others: object) -> str:
    """Return why the kernels of this file cannot take these arguments; empty when they can."""
    return refused_dtype(logits.dtype)


def masked_bce(
    logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce`; results as in `smile_fast.ops.reference.masked_bce`."""
    logits = logits.contiguous()
    grad = empty(logits.shape, logits.dtype) if with_grad else logits.new_empty(0)
    sums, counts = _run(logits, labels, table, grad if with_grad else None, mean)
    return sums, counts, grad


def masked_bce_in_place(logits: Tensor, labels: Tensor, table: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce_in_place`; results as in `smile_fast.ops.reference.masked_bce_in_place`."""
    if logits.is_contiguous():
        return _run(logits, labels, table, logits, mean)
    grad = logits.contiguous()
    results = _run(grad, labels, table, grad, mean)
    logits.copy_(grad)
    return results


def _run(
    logits: Tensor,  # [B, K, *S], contiguous
    labels: Tensor,  # [B, *S]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    grad: Tensor | None,  # [B, K, *S], contiguous; may be the logits
    mean: bool,
) -> tuple[Tensor, Tensor]:
    # The op can be called without its public function, and a wrong size would read foreign memory.
    check_loss(logits, labels, table, tuple(DTYPES), torch.device("cpu"))
    batch, organs = logits.shape[:2]
    labels, table = labels.contiguous(), table.contiguous()
    sums = logits.new_empty((batch, organs), dtype=torch.float64)
    counts = logits.new_empty((batch, organs), dtype=torch.int64)
    CORE.masked_bce(
        dtype=DTYPES[logits.dtype],
        logits=logits.data_ptr(),
        labels=labels.data_ptr(),
        table=table.data_ptr(),
        batch=batch,
        organs=organs,
        voxels=math.prod(labels.shape[1:]),
        sums=sums.data_ptr(),
        counts=counts.data_ptr(),
        gradient=0 if grad is None else grad.data_ptr(),
        mean=mean,
        threads=torch.get_num_threads(),
    )
    return sums, counts
