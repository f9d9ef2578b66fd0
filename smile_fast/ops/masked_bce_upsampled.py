"""masked_bce_upsampled: masked_bce of logits that are interpolated to the labels' size on the way.

The gradient is with respect to the low-resolution logits: the transpose of the interpolation, applied to
w (sigmoid(u) - y) at the labels' size, for the mean divided by the number of known pairs.
"""

from typing import cast

from torch import Tensor

from smile_fast.ops import loss_autograd
from smile_fast.ops.checks import check_reduction, check_supervision
from smile_fast.ops.loss_autograd import LossStats, Results
from smile_fast.ops.native.core import Core, native
from smile_fast.ops.registry import define, overload
from smile_fast.ops.triton_kernels.core import refused_axes, triton

NAME = "masked_bce_upsampled"


def _check(logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool) -> None:
    """Raise unless logits [B, K, *low] can be interpolated to the size of labels [B, *high]."""
    if logits.ndim not in (4, 5) or logits.shape[1] == 0:
        raise ValueError(
            f"logits must have shape [B, K, h, w] or [B, K, d, h, w] with K >= 1, got {list(logits.shape)}"
        )
    check_supervision(logits, labels, table)
    if labels.ndim != logits.ndim - 1 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels must have shape [B, *S] with B = {logits.shape[0]} and {logits.ndim - 2} spatial axes, "
            f"got {list(labels.shape)}"
        )
    if 0 in logits.shape[2:] and 0 not in labels.shape:
        raise ValueError(f"logits must have no empty spatial axis, got {list(logits.shape)}")


def _triton_limit(logits: Tensor, labels: Tensor, *others: object) -> str:
    return refused_axes(*logits.shape[2:], *labels.shape[1:])


def _launch(core: Core, logits: Tensor, labels: Tensor, table: Tensor, with_grad: bool, mean: bool) -> Results:
    grad = logits.new_empty(logits.shape if with_grad else (0,))
    flat = (1,) * (5 - logits.ndim)  # an image is a volume of one slice
    low, high = (*flat, *logits.shape[2:]), (*flat, *labels.shape[1:])
    gradient = grad if with_grad else None
    return *loss_autograd.launch(core, NAME, logits, labels, table, gradient, low=low, high=high, mean=mean), grad


define(
    NAME,
    loss_autograd.SCHEMA,
    check=_check,
    fake=loss_autograd.fake,
    differentiable=loss_autograd.FORMULA,
    native=native(_launch),
    triton=triton(_launch, _triton_limit),
)


def masked_bce_upsampled(
    logits: Tensor,  # [B, K, h, w] or [B, K, d, h, w]
    labels: Tensor,  # [B, H, W] or [B, D, H, W]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    *,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Tensor:
    """Masked multi-label binary cross entropy of upsampled logits.

    Equals `masked_bce(F.interpolate(logits, size, mode="bilinear", align_corners=False), labels, table)`, trilinear
    in 3D; the ratio of the sizes need not be an integer, nor at least 1.

    Args:
        logits: [B, K, h, w] or [B, K, d, h, w] float32, bfloat16, float16 or float64; any memory format.
        labels: [B, H, W] or [B, D, H, W] uint8 label map at the size to which the logits are interpolated.
        table: [B, 256, 2, ceil(K / 32)] int32 supervision tables, on the logits' device.
        reduction: "mean", "sum" or "none", as for `masked_bce`.
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        [] or, for "none", [B, K]; float64 for float64 logits, else float32.

    Raises:
        TypeError, ValueError: as `masked_bce` does.

    Numerics: interpolates and computes in float32 (float64 for float64 logits), sums in float64, deterministically; the
        native implementation gives the same bits for any number of threads. A NaN or infinite logit reaches the loss
        only through known voxels whose interpolation reads it. In float16 the gradient is kept as that of the sum until
        the backward pass: it overflows where more than 65,504 voxels read a logit. There is no second derivative.
    Sync: reads nothing on the host.
    Source: Petit et al., DLMIA 2018, equation 1.
    """
    return masked_bce_upsampled_stats(logits, labels, table, reduction=reduction, implementation=implementation).loss


def masked_bce_upsampled_stats(
    logits: Tensor,  # [B, K, h, w] or [B, K, d, h, w]
    labels: Tensor,  # [B, H, W] or [B, D, H, W]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    *,
    reduction: str = "mean",
    implementation: str | None = None,
) -> LossStats:
    """Return what `masked_bce_upsampled` does, with the sums and counts [B, K] that it was reduced from."""
    check_reduction(reduction)
    kernel = overload(NAME, implementation, logits, labels, table)

    def compute(values: Tensor, with_grad: bool, mean: bool) -> Results:
        return cast(Results, kernel(values, labels, table, with_grad, mean))

    return loss_autograd.loss_stats(logits, compute, reduction)
