"""masked_bce in CUDA C++: csrc/core/masked_bce/masked_bce_cuda.h."""

import math

import torch
from torch import Tensor

from smile_fast.ops.checks import check_loss, check_shape, check_tensor
from smile_fast.ops.native.core import DTYPES
from smile_fast.ops.native_cuda import core


def refusal(logits: Tensor, *others: object) -> str:
    """Return why the kernels of this file cannot take these arguments; empty when they can."""
    return core.refusal(logits)


def masked_bce(
    logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce`; results as in `smile_fast.ops.reference.masked_bce`."""
    logits = logits.contiguous()
    grad = logits.new_empty(logits.shape if with_grad else (0,))
    sums, counts = _run(logits, labels, table, grad if with_grad else None, mean)
    return sums, counts, grad


def masked_bce_in_place(logits: Tensor, labels: Tensor, table: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """Kernel of `smile_fast::masked_bce_in_place`; results as in `smile_fast.ops.reference.masked_bce_in_place`."""
    grad = logits.contiguous()
    results = _run(grad, labels, table, grad, mean)
    if grad is not logits:
        logits.copy_(grad)
    return results


def can_scale(grad: Tensor) -> bool:
    """Return whether `scale_gradient` takes a gradient: a plain one, not one that torch.compile traces."""
    return not core.UNUSABLE and type(grad) is Tensor and grad.is_cuda and grad.is_contiguous() and not refusal(grad)


def scale_gradient(
    grad: Tensor,  # [B, K, *S], overwritten
    factors: Tensor,  # [B, K] float64
) -> None:
    """Multiply every plane by its factor; planes whose factor is 1 are neither read nor written."""
    check_tensor("factors", factors, (torch.float64,), grad.device)
    check_shape("factors", factors, tuple(grad.shape[:2]), "[B, K]")
    factors = factors.contiguous()
    with torch.cuda.device(grad.device):
        core.CORE.scale_gradient(
            dtype=DTYPES[grad.dtype],
            gradient=grad.data_ptr(),
            factors=factors.data_ptr(),
            planes=factors.numel(),
            voxels=math.prod(grad.shape[2:]),
            stream=torch.cuda.current_stream(grad.device).cuda_stream,
        )


def _run(
    logits: Tensor,  # [B, K, *S], contiguous
    labels: Tensor,  # [B, *S]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    grad: Tensor | None,  # [B, K, *S], contiguous; may be the logits
    mean: bool,
) -> tuple[Tensor, Tensor]:
    # The op can be called without its public function, and a wrong size would read foreign memory.
    check_loss(logits, labels, table, tuple(DTYPES), logits.device)
    batch, organs, *spatial = logits.shape
    labels, table = labels.contiguous(), table.contiguous()
    sums = logits.new_empty((batch, organs), dtype=torch.float64)
    counts = logits.new_empty((batch, organs), dtype=torch.int64)
    core.queue(
        "masked_bce",
        logits.device,
        dtype=DTYPES[logits.dtype],
        logits=logits.data_ptr(),
        labels=labels.data_ptr(),
        table=table.data_ptr(),
        batch=batch,
        organs=organs,
        voxels=math.prod(spatial),
        sums=sums.data_ptr(),
        counts=counts.data_ptr(),
        gradient=0 if grad is None else grad.data_ptr(),
        mean=mean,
    )
    return sums, counts
