"""pseudo_labels_upsampled: a relabelling round of one case, from low-resolution logits to pseudo-label codes."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from smile_fast.ops import reference
from smile_fast.ops.checks import check_feature_grid, check_float_tensor, check_shape, check_stride, check_tensor
from smile_fast.ops.native import pseudo_labels_upsampled as native
from smile_fast.ops.native.core import UNUSABLE
from smile_fast.ops.registry import REFERENCE, Implementation, define, overload
from smile_fast.ops.triton_kernels.core import implementation as triton
from smile_fast.ops.triton_kernels.core import stride_refusal
from smile_runtime.label_map import MAX_ORGANS

NAME = "pseudo_labels_upsampled"


def _fake(
    logits: Tensor, labels: Tensor, organs: Sequence[int], gamma: float, stride: int, per_slice: bool
) -> tuple[Tensor, Tensor]:
    overlay = torch.empty_like(labels, memory_format=torch.contiguous_format)
    return overlay, labels.new_empty((len(organs), 3), dtype=torch.int64)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None, None, None, None, None]:
    return None, None, None, None, None, None


def _triton_refusal(logits: Tensor, labels: Tensor, organs: object, gamma: object, stride: int, *others: object) -> str:
    return stride_refusal(logits, labels.shape[1], labels.shape[2], stride)


define(
    NAME,
    "(Tensor logits, Tensor labels, int[] organs, float gamma, int stride, bool per_slice)"
    " -> (Tensor overlay, Tensor counts)",
    [
        Implementation(
            "native", native.pseudo_labels_upsampled, devices=("cpu",), unusable=UNUSABLE, refusal=native.refusal
        ),
        triton(NAME, NAME, _triton_refusal),
        Implementation("torch", reference.pseudo_labels_upsampled_queued, devices=("cuda",), on_request=("cpu",)),
        Implementation(REFERENCE, reference.pseudo_labels_upsampled, devices=()),
    ],
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def pseudo_labels_upsampled(
    logits: Tensor,  # [D, K, h, w]
    labels: Tensor,  # [D, H, W]
    organs: Sequence[int],
    gamma: float,
    stride: int,
    per_slice: bool = False,
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
        stride: pixels a feature pixel, on both axes of a slice.
        per_slice: take the share of each slice's candidates, not of the volume's.
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        overlay: [D, H, W] uint8, 0x80 | (organ + 1) where an organ got a voxel, else 0.
        counts: [n, 3] int64, numbers of candidates, of selected voxels, and of those kept after organs competed.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices disagree, gamma, stride or an organ is out of range.

    Numerics: a score is the float64 interpolation of `reference.upsample_by_stride` rounded once to float32 (not
        rounded for float64 logits). A NaN score is no candidate. Exact and deterministic: all implementations agree
        bit for bit on float32, bfloat16 and float16 logits, for any number of threads.
    Sync: reads nothing on the host and copies nothing from it, so that a CUDA graph can capture it; except for the
        reference, which compacts the candidates. On CUDA it runs only when it is asked for. `triton` is the fastest
        there; `torch` works without Triton and takes float64, and both leave the selection to `select_top_fraction`.
        Beside the results they need some 20 bytes a voxel (`torch` 30, float64 more), whatever the number of organs.
    Source: Petit et al., DLMIA 2018, section 2.2 (SMILEr).
    """
    check_float_tensor("logits", logits)
    check_tensor("labels", labels, (torch.uint8,), logits.device)
    check_stride(stride)
    if labels.ndim != 3:
        raise ValueError(f"labels must have shape [D, H, W], got {list(labels.shape)}")
    check_feature_grid(logits, "D, K", (labels.shape[1], labels.shape[2]), stride)
    channels = logits.shape[1]
    check_shape("labels", labels, (logits.shape[0], labels.shape[1], labels.shape[2]), "[D, H, W]")
    if not 1 <= channels <= MAX_ORGANS:
        raise ValueError(f"logits must have 1 to {MAX_ORGANS} organs, got shape {list(logits.shape)}")
    if isinstance(gamma, bool) or not isinstance(gamma, float | int):
        raise TypeError(f"gamma must be a float, got {type(gamma).__name__}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if not isinstance(per_slice, bool):
        raise TypeError(f"per_slice must be a bool, got {type(per_slice).__name__}")
    wanted = _organs(organs, channels)
    arguments = (logits, labels, wanted, float(gamma), stride, per_slice)
    return cast(tuple[Tensor, Tensor], overload(NAME, implementation, *arguments)(*arguments))


def _organs(organs: Sequence[int], channels: int) -> list[int]:
    """Return the organs as a list, or raise unless they are ascending channels."""
    wanted = list(organs)
    if any(isinstance(organ, bool) or not isinstance(organ, int) for organ in wanted):
        raise TypeError(f"organs must be a sequence of int, got {wanted}")
    if any(not 0 <= organ < channels for organ in wanted) or sorted(set(wanted)) != wanted:
        raise ValueError(f"organs must be ascending numbers in 0..{channels - 1}, got {wanted}")
    return wanted
