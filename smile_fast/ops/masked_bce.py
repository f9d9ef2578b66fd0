"""masked_bce: K independent sigmoid losses, each over the voxels on which its organ is known.

L = sum over k of w_k BCE(sigmoid(z_k), y*_k), equation 1 of Petit et al., DLMIA 2018. The forward pass makes the
gradient as well, w (sigmoid(z) - y), for the mean divided by the number of known pairs; the backward pass scales it
where something other than 1 arrives.
"""

from typing import Any, cast

import torch
from torch import Tensor

from smile_fast.ops import loss_autograd
from smile_fast.ops.checks import check_reduction, check_shape, check_supervision
from smile_fast.ops.loss_autograd import LossStats, Results
from smile_fast.ops.native.core import Core, native
from smile_fast.ops.native_cuda.core import cuda
from smile_fast.ops.registry import define, overload

NAME = "masked_bce"
IN_PLACE = "masked_bce_in_place"


def _check(logits: Tensor, labels: Tensor, table: Tensor, *flags: bool) -> None:
    if logits.ndim < 3 or logits.shape[1] == 0:
        raise ValueError(f"logits must have shape [B, K, *S] with K >= 1, got {list(logits.shape)}")
    check_supervision(logits, labels, table)
    check_shape("labels", labels, (logits.shape[0], *logits.shape[2:]), "[B, *S]")


def _launch(core: Core, logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool) -> Results:
    grad = core.empty(logits.shape if with_grad else (0,), logits)
    sizes = {"voxels": labels.shape[1:].numel(), "mean": mean}
    return *loss_autograd.launch(core, NAME, logits, labels, table, grad if with_grad else None, **sizes), grad


def _launch_in_place(
    core: Core, logits: Tensor, labels: Tensor, table: Tensor, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad = logits.contiguous()
    sizes = {"voxels": labels.shape[1:].numel(), "mean": mean}
    results = loss_autograd.launch(core, NAME, grad, labels, table, grad, **sizes)
    if grad is not logits:
        logits.copy_(grad)
    return results


define(
    NAME,
    loss_autograd.SCHEMA,
    check=_check,
    fake=loss_autograd.fake,
    differentiable=loss_autograd.FORMULA,
    native=native(_launch),
    cuda=cuda(_launch),
)

define(
    IN_PLACE,
    "(Tensor(a!) logits, Tensor labels, Tensor table, bool mean) -> (Tensor loss, Tensor sums, Tensor counts)",
    check=_check,
    fake=lambda logits, labels, table, mean: loss_autograd.fake(logits, labels, table, False, mean)[:3],
    native=native(_launch_in_place),
    cuda=cuda(_launch_in_place),
)


def masked_bce(
    logits: Tensor,  # [B, K, *S]
    labels: Tensor,  # [B, *S]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    *,
    reduction: str = "mean",
    overwrite_logits: bool = False,
    implementation: str | None = None,
) -> Tensor:
    """Masked multi-label binary cross entropy.

    Args:
        logits: [B, K, *S] float32, bfloat16, float16 or float64; any memory format, of which the native and the CUDA
            implementation copy all but the contiguous one. Channel k is organ k.
        labels: [B, *S] uint8 label map, see `smile_fast.supervision`.
        table: [B, 256, 2, ceil(K / 32)] int32 supervision tables, see `smile_fast.supervision.build_tables`, on the
            logits' device.
        reduction: "mean" over the known (voxel, organ) pairs, exactly 0 when there are none; "sum"; or "none" for
            one sum an (image, organ).
        overwrite_logits: write the gradient over the logits, which saves the memory and the time of another tensor
            of their size. For logits that nobody reads afterwards and that are no leaf. Without effect where no
            gradient is made, and under torch.compile, which plans memory itself.
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        [] or, for "none", [B, K]; float64 for float64 logits, else float32.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices disagree, unknown reduction, implementation that cannot be used, logits that
            cannot be overwritten.

    Numerics: computes in float32 (float64 for float64 logits) and sums in float64, deterministically; the native
        implementation gives the same bits for any number of threads. A logit on which its organ is unknown may be
        NaN or infinite. There is no second derivative.
    Sync: reads nothing on the host.
    Source: Petit et al., DLMIA 2018, equation 1.
    """
    options: Any = {"reduction": reduction, "overwrite_logits": overwrite_logits, "implementation": implementation}
    return masked_bce_stats(logits, labels, table, **options).loss


def masked_bce_stats(
    logits: Tensor,  # [B, K, *S]
    labels: Tensor,  # [B, *S]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    *,
    reduction: str = "mean",
    overwrite_logits: bool = False,
    implementation: str | None = None,
) -> LossStats:
    """Return what `masked_bce` does, with the sums and counts [B, K] that it was reduced from; the cost is the same."""
    check_reduction(reduction)
    kernel = overload(NAME, implementation, logits, labels, table)

    def compute(values: Tensor, with_grad: bool, mean: bool) -> Results:
        if not (overwrite_logits and with_grad) or torch.compiler.is_compiling():
            return cast(Results, kernel(values, labels, table, with_grad, mean))
        _check_overwritable(logits)
        loss, sums, counts = overload(IN_PLACE, implementation)(values, labels, table, mean)
        torch.autograd.graph.increment_version(logits)  # whoever kept the logits for a backward pass gets an error
        return loss, sums, counts, values

    return loss_autograd.loss_stats(logits, compute, reduction)


def _check_overwritable(logits: Tensor) -> None:
    """Raise ValueError for logits whose memory is not theirs alone to be overwritten."""
    base = logits._base
    if logits.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        raise ValueError("overwrite_logits=True needs logits that an operation has made, got a leaf or a view of one")
    if not logits.is_contiguous():
        raise ValueError(f"overwrite_logits=True needs contiguous logits, got strides {logits.stride()}")
