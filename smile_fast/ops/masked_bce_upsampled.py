"""masked_bce_upsampled: masked_bce of logits that are interpolated to the labels' size on the way.

The gradient is with respect to the low-resolution logits: the transpose of the interpolation, applied to
w (sigmoid(u) - y) at the labels' size.
"""

from typing import cast

from torch import Tensor

from smile_fast.ops import loss, reference
from smile_fast.ops.checks import FLOATS, check_float_tensor, check_reduction, check_upsampled_loss
from smile_fast.ops.native import masked_bce_upsampled as native
from smile_fast.ops.native.core import UNUSABLE
from smile_fast.ops.native_cuda import masked_bce_upsampled as native_cuda
from smile_fast.ops.native_cuda.core import UNUSABLE as CUDA_UNUSABLE
from smile_fast.ops.registry import REFERENCE, Implementation, define, overload
from smile_fast.ops.triton_kernels.core import implementation as triton
from smile_fast.ops.triton_kernels.core import upsampled_refusal

NAME = "masked_bce_upsampled"

define(
    NAME,
    "(Tensor logits, Tensor labels, Tensor table, bool with_grad) -> (Tensor sums, Tensor counts, Tensor grad)",
    [
        Implementation(
            "native",
            native.masked_bce_upsampled,
            devices=("cpu",),
            unusable=UNUSABLE,
            refusal=native.refusal,
        ),
        Implementation(
            "cuda",
            native_cuda.masked_bce_upsampled,
            devices=("cuda",),
            unusable=CUDA_UNUSABLE,
            refusal=native_cuda.refusal,
        ),
        triton(NAME, NAME, upsampled_refusal),
        Implementation(REFERENCE, reference.masked_bce_upsampled, devices=()),
    ],
    fake=loss.fake,
    setup_context=loss.setup_context,
    backward=loss.backward,
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
        reduction: "mean" over the known (voxel, organ) pairs, exactly 0 when there are none; "sum"; or "none" for
            one sum an (image, organ).
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        [] or, for "none", [B, K]; float64 for float64 logits, else float32.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices disagree, unknown reduction, implementation that cannot be used.

    Numerics: interpolates and computes in float32 (float64 for float64 logits), sums in float64, deterministically; the
        native implementation gives the same bits for any number of threads. A NaN or infinite logit reaches the loss
        only through known voxels whose interpolation reads it. The gradient is kept as that of the sum until the
        backward pass: in float16 it overflows where more than 65,504 voxels read a logit. There is no second
        derivative.
    Sync: reads nothing on the host.
    Source: Petit et al., DLMIA 2018, equation 1.
    """
    check_reduction(reduction)
    return _loss_and_counts(logits, labels, table, reduction, implementation)[0]


def masked_bce_upsampled_stats(
    logits: Tensor,  # [B, K, h, w] or [B, K, d, h, w]
    labels: Tensor,  # [B, H, W] or [B, D, H, W]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    *,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Per-plane sums and counts of `masked_bce_upsampled`; its arguments, errors and numerics.

    Returns:
        sums: [B, K] float64, sum over the labels' voxels of w * BCE; differentiable.
        counts: [B, K] int64, number of known voxels. The mean loss is `sums.sum() / counts.sum().clamp(min=1)`.
    """
    return _loss_and_counts(logits, labels, table, None, implementation)


def _loss_and_counts(
    logits: Tensor, labels: Tensor, table: Tensor, reduction: str | None, implementation: str | None
) -> tuple[Tensor, Tensor]:
    check_float_tensor("logits", logits)
    check_upsampled_loss(logits, labels, table, FLOATS, logits.device)
    with_grad = loss.needs_grad(logits)
    kernel = overload(NAME, implementation, logits, labels, table, with_grad)

    def compute(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor, Tensor], kernel(values, labels, table, with_grad))

    return loss.loss_and_counts(logits, compute, reduction)
