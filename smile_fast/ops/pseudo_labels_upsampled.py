"""pseudo_labels_upsampled: a relabelling round of one case, from low-resolution logits to pseudo-label codes."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from smile_fast.ops import reference
from smile_fast.ops.checks import check_low, check_shape, check_tensor
from smile_fast.ops.native.core import Core, native, refused_stride
from smile_fast.ops.registry import Implementation, define, overload
from smile_fast.ops.triton_kernels.core import refused_axes, triton

NAME = "pseudo_labels_upsampled"
SCOPES = ("volume", "slice")
LARGEST_SEGMENT = 2**31 - 1
"""Voxels among which the Triton kernels select: indices have 31 bits, as scores do, and counts fit in an int32."""


def _check(logits: Tensor, labels: Tensor, organs: Sequence[int], gamma: float, stride: int, scope: str) -> None:
    check_tensor("labels", labels, torch.uint8, logits.device)
    if labels.ndim != 3:
        raise ValueError(f"labels must have shape [D, H, W], got {list(labels.shape)}")
    _, height, width = labels.shape
    check_low(logits, "D, K", (height, width), stride)
    check_shape("labels", labels, (logits.shape[0], height, width), "[D, H, W]")
    if any(not 0 <= organ < logits.shape[1] for organ in organs) or sorted(set(organs)) != list(organs):
        raise ValueError(f"organs must be ascending numbers in 0..{logits.shape[1] - 1}, got {list(organs)}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")


def _fake(
    logits: Tensor, labels: Tensor, organs: Sequence[int], gamma: float, stride: int, scope: str
) -> tuple[Tensor, Tensor]:
    return labels.new_empty(labels.shape), labels.new_empty((len(organs), 3), dtype=torch.int64)


def _launch(
    core: Core, logits: Tensor, labels: Tensor, organs: Sequence[int], gamma: float, stride: int, scope: str
) -> tuple[Tensor, Tensor]:
    overlay = labels.new_empty(labels.shape)
    counts = labels.new_empty((len(organs), 3), dtype=torch.int64)
    shape = {"depth": labels.shape[0], "channels": logits.shape[1], "grid": (*labels.shape[1:], stride)}
    chosen = {"organs": torch.tensor(organs, dtype=torch.int64), "organ_count": len(organs), "gamma": gamma}
    scope_and_results = {"per_slice": scope == "slice", "overlay": overlay, "counts": counts}
    core.run(NAME, logits.dtype, logits=logits, labels=labels, **shape, **chosen, **scope_and_results)
    return overlay, counts


def _queued(*arguments: Any) -> tuple[Tensor, Tensor]:
    return reference.pseudo_labels_upsampled(*arguments, select=torch.ops.smile_fast.select_top_fraction)


def _triton_limit(logits: Tensor, labels: Tensor, organs: object, gamma: object, stride: int, scope: str) -> str:
    voxels = labels[0].numel() if scope == "slice" and len(labels) else labels.numel()
    if voxels > LARGEST_SEGMENT:
        return f"it selects among up to {LARGEST_SEGMENT} voxels, got {voxels}"
    return refused_axes(*labels.shape[1:], stride)


define(
    NAME,
    "(Tensor logits, Tensor labels, int[] organs, float gamma, int stride, str scope)"
    " -> (Tensor overlay, Tensor counts)",
    check=_check,
    fake=_fake,
    native=native(_launch, lambda logits, labels, organs, gamma, stride, scope: refused_stride(stride)),
    triton=triton(_launch, _triton_limit),
    further=[Implementation("torch", _queued, ("cuda",), on_request=("cpu",))],
)


def pseudo_labels_upsampled(
    logits: Tensor,  # [D, K, h, w]
    labels: Tensor,  # [D, H, W]
    organs: Sequence[int],
    gamma: float,
    stride: int,
    scope: str = "volume",
    *,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Select the most confident positives of some organs as pseudo-labels.

    An organ's score is its logit, upsampled bilinearly: logits order voxels as probabilities do, and tell apart what
    sigmoid rounds to 1. Its candidates are the voxels with label value 0 and a score above 0 (p > 0.5). Of n candidates
    the highest ceil(gamma n) are selected, ties to the lowest voxel index, see `select_top_fraction`. A voxel that two
    organs select goes to the higher score, then to the lower organ.

    Args:
        logits: [D, K, h, w] float32, bfloat16, float16 or float64, h = ceil(H / stride), w = ceil(W / stride); sigmoid
            heads, channel k is organ k, K at most 126.
        labels: [D, H, W] uint8, the human labels that this round may see; only 0 is unlabelled.
        organs: [n] the organs that may get pseudo-labels, 0-based, ascending.
        gamma: share of the candidates to select, in [0, 1].
        stride: pixels a low-resolution pixel, on both axes of a slice.
        scope: "volume", or "slice" to take the share of each slice's candidates by itself.
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        overlay: [D, H, W] uint8, 0x80 | (organ + 1) where an organ got a voxel, else 0.
        counts: [n, 3] int64, numbers of candidates, of selected voxels, and of those kept after organs competed.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices disagree, gamma, stride or an organ is out of range, unknown scope.

    Numerics: a score is the float64 interpolation of `reference.upsample_by_stride` rounded once to float32 (not
        rounded for float64 logits). A NaN score is no candidate. Exact and deterministic: all implementations agree
        bit for bit on float32, bfloat16 and float16 logits, for any number of threads.
    Sync: reads nothing on the host and copies nothing from it, so that a CUDA graph can capture it; except for the
        reference, which compacts the candidates. On CUDA it runs only when it is asked for. `triton` is the fastest
        there and keeps nothing of a voxel's size but the results: with labels and overlay it takes 2 bytes a voxel, and
        1 KiB an organ and segment. `torch` works without Triton and takes float64; it leaves the selection to
        `select_top_fraction` and needs some 30 bytes a voxel (float64 more), whatever the number of organs.
    Source: Petit et al., DLMIA 2018, section 2.2 (SMILEr).
    """
    wanted = list(organs) if isinstance(organs, Sequence) else organs  # a range, too
    arguments = (logits, labels, wanted, gamma, stride, scope)
    return cast(tuple[Tensor, Tensor], overload(NAME, implementation, *arguments)(*arguments))
