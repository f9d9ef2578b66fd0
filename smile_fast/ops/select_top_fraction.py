"""select_top_fraction: the most confident share of the candidates, segment by segment, exactly."""

from typing import cast

import torch
from torch import Tensor

from smile_fast.ops.checks import FLOATS, check_dtype, check_shape, check_tensor
from smile_fast.ops.native.core import Core, native
from smile_fast.ops.native_cuda.core import cuda
from smile_fast.ops.registry import define, overload

NAME = "select_top_fraction"
MOST_ON_CUDA = 2**32 - 1  # scores: csrc/core/select_top_fraction/select_top_fraction_cuda.h


def _check(scores: Tensor, candidates: Tensor, gamma: Tensor, segments: Tensor) -> None:
    check_dtype("scores", scores, *FLOATS)
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape [N], got {list(scores.shape)}")
    check_tensor("candidates", candidates, torch.bool, scores.device)
    check_shape("candidates", candidates, (scores.shape[0],), "[N]")
    check_tensor("segments", segments, torch.int64, scores.device)
    if segments.ndim != 1 or segments.shape[0] == 0:
        raise ValueError(f"segments must have shape [S + 1], got {list(segments.shape)}")
    check_tensor("gamma", gamma, torch.float64, scores.device)
    check_shape("gamma", gamma, (segments.shape[0] - 1,), "[S]")


def _cuda_limit(scores: Tensor, *others: object) -> str:
    length = scores.numel()
    return f"it takes at most {MOST_ON_CUDA:,} scores, got {length:,}" if length > MOST_ON_CUDA else ""


def _launch(core: Core, scores: Tensor, candidates: Tensor, gamma: Tensor, segments: Tensor) -> Tensor:
    selection = core.empty(candidates.shape, candidates)
    segmented = {"gamma": gamma, "offsets": segments, "segments": gamma.shape[0]}
    given = {"scores": scores, "candidates": candidates, "length": scores.shape[0], **segmented}
    core.run(NAME, scores.dtype, **given, selection=selection)
    return selection


define(
    NAME,
    "(Tensor scores, Tensor candidates, Tensor gamma, Tensor segments) -> Tensor",
    check=_check,
    fake=lambda scores, candidates, gamma, segments: candidates.new_empty(candidates.shape),
    native=native(_launch),
    cuda=cuda(_launch, _cuda_limit),
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
    kernel = overload(NAME, implementation, scores, candidates)
    if isinstance(gamma, Tensor):
        shares = gamma
    else:
        if isinstance(gamma, bool) or not isinstance(gamma, float | int):
            raise TypeError(f"gamma must be a float or a tensor of torch.float64, got {type(gamma).__name__}")
        shares = torch.full((max(segments.numel() - 1, 0),), gamma, dtype=torch.float64, device=segments.device)
    if not torch.compiler.is_compiling():
        _check_contents(shares, segments, scores.numel())
    return cast(Tensor, kernel(scores, candidates, shares, segments))


def _check_contents(shares: Tensor, segments: Tensor, length: int) -> None:
    """Raise ValueError unless shares are in [0, 1] and offsets rise within 0..length. Reads what is on the CPU."""
    if shares.device.type == "cpu":
        wrong = ~((shares >= 0) & (shares <= 1))  # NaN is wrong, too
        if wrong.any():
            raise ValueError(f"gamma must lie in [0, 1], got {shares[wrong][0].item()}")
    if segments.device.type == "cpu" and segments.numel():  # an empty tensor is refused with all other wrong shapes
        if (segments.diff() < 0).any():
            raise ValueError(f"segments must not decrease from offset to offset, got {segments.tolist()}")
        if segments[0] < 0 or segments[-1] > length:
            raise ValueError(f"segments must be offsets in 0..{length}, got {segments.tolist()}")
