"""masked_bce: K independent sigmoid losses, each over the voxels on which its organ is known.

L = sum over k of w_k BCE(sigmoid(z_k), y*_k), equation 1 of Petit et al., DLMIA 2018. The forward pass makes the
gradient as well, w (sigmoid(z) - y); the backward pass only scales it.
"""

from typing import cast

import torch
from torch import Tensor

from smile_fast.ops import loss, reference
from smile_fast.ops.checks import (
    check_float_tensor,
    check_reduction,
    check_shape,
    check_table,
    check_tensor,
)
from smile_fast.ops.native import masked_bce as native
from smile_fast.ops.native.core import UNUSABLE
from smile_fast.ops.registry import REFERENCE, Implementation, define, overload

NAME = "masked_bce"

define(
    NAME,
    "(Tensor logits, Tensor labels, Tensor table, bool with_grad) -> (Tensor sums, Tensor counts, Tensor grad)",
    [
        Implementation(
            "native",
            native.masked_bce,
            devices=("cpu",),
            unusable=UNUSABLE,
            refusal=native.refusal,
        ),
        Implementation(REFERENCE, reference.masked_bce, devices=()),
    ],
    fake=loss.fake,
    setup_context=loss.setup_context,
    backward=loss.backward,
)


def masked_bce(
    logits: Tensor,  # [B, K, *S]
    labels: Tensor,  # [B, *S]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    *,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Tensor:
    """Masked multi-label binary cross entropy.

    Args:
        logits: [B, K, *S] float32, bfloat16, float16 or float64; any memory format. Channel k is organ k.
        labels: [B, *S] uint8 label map, see `smile_fast.supervision`.
        table: [B, 256, 2, ceil(K / 32)] int32 supervision tables, see `smile_fast.supervision.build_tables`, on the
            logits' device.
        reduction: "mean" over the known (voxel, organ) pairs, exactly 0 when there are none; "sum"; or "none" for
            one sum an (image, organ).
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        [] or, for "none", [B, K]; float64 for float64 logits, else float32.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices disagree, unknown reduction, implementation that cannot be used.

    Numerics: computes in float32 (float64 for float64 logits) and sums in float64, deterministically; the native
        implementation gives the same bits for any number of threads. A logit on which its organ is unknown may be
        NaN or infinite. There is no second derivative.
    Sync: reads nothing on the host.
    Source: Petit et al., DLMIA 2018, equation 1.
    """
    check_reduction(reduction)
    sums, counts = masked_bce_stats(logits, labels, table, implementation=implementation)
    return loss.reduce(sums, counts, reduction, logits.dtype)


def masked_bce_stats(
    logits: Tensor,  # [B, K, *S]
    labels: Tensor,  # [B, *S]
    table: Tensor,  # [B, 256, 2, ceil(K / 32)]
    *,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Per-plane sums and counts of `masked_bce`; its arguments, errors and numerics.

    Returns:
        sums: [B, K] float64, sum over voxels of w * BCE; differentiable.
        counts: [B, K] int64, number of known voxels. The mean loss is `sums.sum() / counts.sum().clamp(min=1)`.
    """
    check_float_tensor("logits", logits)
    if logits.ndim < 3 or logits.shape[1] == 0:
        raise ValueError(f"logits must have shape [B, K, *S] with K >= 1, got {list(logits.shape)}")
    check_tensor("labels", labels, (torch.uint8,), logits.device)
    check_tensor("table", table, (torch.int32,), logits.device)
    batch, organs, *spatial = logits.shape
    check_shape("labels", labels, (batch, *spatial), "[B, *S]")
    check_table(table, batch, organs)
    with_grad = loss.needs_grad(logits)
    kernel = overload(NAME, implementation, logits, labels, table, with_grad)
    sums, counts, _ = cast(tuple[Tensor, Tensor, Tensor], kernel(logits, labels, table, with_grad))
    return sums, counts
