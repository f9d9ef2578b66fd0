"""masked_bce: K independent sigmoid losses, each over the voxels on which its organ is known.

L = sum over k of w_k BCE(sigmoid(z_k), y*_k), equation 1 of Petit et al., DLMIA 2018. The forward pass makes the
gradient as well, w (sigmoid(z) - y), for the mean divided by the number of known pairs; the backward pass scales it
where something other than 1 arrives.
"""

from typing import cast

import torch
from torch import Tensor

from smile_fast.ops import loss, reference
from smile_fast.ops.checks import FLOATS, check_float_tensor, check_loss, check_reduction
from smile_fast.ops.native import masked_bce as native
from smile_fast.ops.native.core import UNUSABLE
from smile_fast.ops.native_cuda import masked_bce as native_cuda
from smile_fast.ops.native_cuda.core import UNUSABLE as CUDA_UNUSABLE
from smile_fast.ops.registry import REFERENCE, Implementation, define, overload
from smile_fast.ops.triton_kernels.core import implementation as triton

NAME = "masked_bce"
IN_PLACE = "masked_bce_in_place"

define(
    NAME,
    "(Tensor logits, Tensor labels, Tensor table, bool with_grad, bool mean)"
    " -> (Tensor sums, Tensor counts, Tensor grad)",
    [
        Implementation(
            "native",
            native.masked_bce,
            devices=("cpu",),
            unusable=UNUSABLE,
            refusal=native.refusal,
        ),
        Implementation(
            "cuda",
            native_cuda.masked_bce,
            devices=("cuda",),
            unusable=CUDA_UNUSABLE,
            refusal=native_cuda.refusal,
        ),
        triton("masked_bce", NAME),
        Implementation(REFERENCE, reference.masked_bce, devices=()),
    ],
    fake=loss.fake,
    setup_context=loss.setup_context,
    backward=loss.backward,
)


def _fake_in_place(logits: Tensor, labels: Tensor, table: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    sums, counts, _ = loss.fake(logits, labels, table, False)
    return sums, counts


define(
    IN_PLACE,
    "(Tensor(a!) logits, Tensor labels, Tensor table, bool mean) -> (Tensor sums, Tensor counts)",
    [
        Implementation(
            "native",
            native.masked_bce_in_place,
            devices=("cpu",),
            unusable=UNUSABLE,
            refusal=native.refusal,
        ),
        Implementation(
            "cuda",
            native_cuda.masked_bce_in_place,
            devices=("cuda",),
            unusable=CUDA_UNUSABLE,
            refusal=native_cuda.refusal,
        ),
        triton("masked_bce", IN_PLACE),
        Implementation(REFERENCE, reference.masked_bce_in_place, devices=()),
    ],
    fake=_fake_in_place,
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
    check_reduction(reduction)
    _check(logits, labels, table)
    # 1 / N underflows in float16: there, the backward pass scales.
    mean = reduction == "mean" and logits.dtype != torch.float16
    overwrite = overwrite_logits and loss.needs_grad(logits) and not torch.compiler.is_compiling()
    if overwrite:
        _check_overwritable(logits)
    return _loss_and_counts(logits, labels, table, reduction, mean, overwrite, implementation)[0]


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
    _check(logits, labels, table)
    return _loss_and_counts(logits, labels, table, None, False, False, implementation)


def _loss_and_counts(
    logits: Tensor,
    labels: Tensor,
    table: Tensor,
    reduction: str | None,
    mean: bool,
    overwrite: bool,
    implementation: str | None,
) -> tuple[Tensor, Tensor]:
    with_grad = loss.needs_grad(logits)
    kernel = overload(NAME, implementation, logits, labels, table, with_grad, mean)

    def in_new_memory(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor, Tensor], kernel(values, labels, table, with_grad, mean))

    def in_place(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sums, counts = overload(IN_PLACE, implementation, values, labels, table, mean)(values, labels, table, mean)
        torch.autograd.graph.increment_version(logits)  # whoever kept the logits for a backward pass gets an error
        return sums, counts, values

    return loss.loss_and_counts(logits, in_place if overwrite else in_new_memory, reduction, mean)


def _check(logits: Tensor, labels: Tensor, table: Tensor) -> None:
    """Raise TypeError or ValueError unless the three belong together."""
    check_float_tensor("logits", logits)
    if logits.ndim < 3 or logits.shape[1] == 0:
        raise ValueError(f"logits must have shape [B, K, *S] with K >= 1, got {list(logits.shape)}")
    check_loss(logits, labels, table, FLOATS, logits.device)


def _check_overwritable(logits: Tensor) -> None:
    """Raise ValueError for logits whose memory is not theirs alone to be overwritten."""
    base = logits._base
    if logits.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        raise ValueError("overwrite_logits=True needs logits that an operation has made, got a leaf or a view of one")
    if not logits.is_contiguous():
        raise ValueError(f"overwrite_logits=True needs contiguous logits, got strides {logits.stride()}")
