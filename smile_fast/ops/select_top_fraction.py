"""select_top_fraction: the most confident share of the candidates, segment by segment, exactly."""

from typing import Any, cast

import torch
from torch import Tensor

from smile_fast.ops import reference
from smile_fast.ops.checks import check_float_tensor, check_shape, check_tensor
from smile_fast.ops.native import select_top_fraction as native
from smile_fast.ops.native.core import UNUSABLE
from smile_fast.ops.native_cuda import select_top_fraction as native_cuda
from smile_fast.ops.native_cuda.core import UNUSABLE as CUDA_UNUSABLE
from smile_fast.ops.registry import REFERENCE, Implementation, define, overload
from smile_fast.ops.triton_kernels.core import implementation as triton

NAME = "select_top_fraction"


def _fake(scores: Tensor, candidates: Tensor, gamma: Tensor, segments: Tensor) -> Tensor:
    return torch.empty_like(candidates, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _backward(ctx: Any, grad_selection: Tensor | None) -> tuple[None, None, None, None]:
    return None, None, None, None


define(
    NAME,
    "(Tensor scores, Tensor candidates, Tensor gamma, Tensor segments) -> Tensor",
    [
        Implementation(
            "native",
            native.select_top_fraction,
            devices=("cpu",),
            unusable=UNUSABLE,
            refusal=native.refusal,
        ),
        Implementation(
            "cuda",
            native_cuda.select_top_fraction,
            devices=("cuda",),
            unusable=CUDA_UNUSABLE,
            refusal=native_cuda.refusal,
        ),
        triton(NAME, NAME),
        Implementation(REFERENCE, reference.select_top_fraction, devices=()),
    ],
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def select_top_fraction(
    scores: Tensor,  # [N]
    candidates: Tensor,  # [N]
    gamma: float | Tensor,  # or [S]
    segments: Tensor,  # [S + 1]
    *,
    implementation: str | None = None,
) -> Tensor:
    """Select the highest-scoring ceil(gamma * n) of the n candidates of every segment.

    Args:
        scores: [N] float32, bfloat16, float16 or float64. Ties go to the lowest index, -0 equals +0, and NaN ranks
            below -inf.
        candidates: [N] bool; nothing else is ever selected.
        gamma: share to select, in [0, 1]; one for all segments, or a [S] float64 tensor on the scores' device.
        segments: [S + 1] int64 offsets, not decreasing, in 0..N, on the scores' device: segment s holds the voxels
            segments[s] to segments[s + 1] - 1. Voxels outside of all segments are not selected.
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        [N] bool, the selection.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices disagree, gamma outside of [0, 1], offsets that decrease or leave 0..N. What
            tensors hold is checked on the CPU and outside of torch.compile only: reading it elsewhere would wait
            for the device; there, gamma is clipped and a bad offset gives an unspecified selection.

    Numerics: exact and deterministic. gamma * n is a float64 product; one within 1e-12 relative of an integer is
        that integer, so that 0.07 of 100 are 7 voxels and not 8.
    Sync: reads nothing on the host.
    Source: Petit et al., DLMIA 2018, section 2.2 (SMILEr).
    """
    check_float_tensor("scores", scores)
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape [N], got {list(scores.shape)}")
    check_tensor("candidates", candidates, (torch.bool,), scores.device)
    check_shape("candidates", candidates, (scores.shape[0],), "[N]")
    check_tensor("segments", segments, (torch.int64,), scores.device)
    if segments.ndim != 1 or segments.shape[0] == 0:
        raise ValueError(f"segments must have shape [S + 1], got {list(segments.shape)}")
    shares = _shares(gamma, segments)
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_segments(segments, scores.shape[0])
        _check_shares(shares)
    kernel = overload(NAME, implementation, scores, candidates, shares, segments)
    return cast(Tensor, kernel(scores, candidates, shares, segments))


def _shares(gamma: float | Tensor, segments: Tensor) -> Tensor:
    """Return gamma as one share a segment: [S] float64."""
    count = segments.shape[0] - 1
    if isinstance(gamma, Tensor):
        check_tensor("gamma", gamma, (torch.float64,), segments.device)
        check_shape("gamma", gamma, (count,), "[S]")
        return gamma
    if isinstance(gamma, bool) or not isinstance(gamma, float | int):
        raise TypeError(f"gamma must be a float or a tensor of torch.float64, got {type(gamma).__name__}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    return torch.full((count,), float(gamma), dtype=torch.float64, device=segments.device)


def _check_segments(segments: Tensor, length: int) -> None:
    """Raise ValueError unless the offsets rise within 0..length. Reads them."""
    if (segments.diff() < 0).any():
        raise ValueError(f"segments must not decrease from offset to offset, got {segments.tolist()}")
    if segments[0] < 0 or segments[-1] > length:
        raise ValueError(f"segments must be offsets in 0..{length}, got {segments.tolist()}")


def _check_shares(shares: Tensor) -> None:
    """Raise ValueError unless every share is in [0, 1]. Reads them."""
    wrong = ~((shares >= 0) & (shares <= 1))  # NaN is wrong, too
    if wrong.any():
        raise ValueError(f"gamma must lie in [0, 1], got {shares[wrong][0].item()}")
