"""pseudo_labels_upsampled in C++, on the CPU: csrc/core/upsampled_labels/pseudo_labels_upsampled.h."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smile_fast.ops.checks import check_channels, check_feature_grid, check_shape, check_tensor
from smile_fast.ops.native.core import CORE, DTYPES, check_core_stride, refused_dtype, refused_stride
from smile_runtime.label_map import MAX_ORGANS


def refusal(logits: Tensor, labels: Tensor, organs: Sequence[int], gamma: float, stride: int, per_slice: bool) -> str:
    """Return why `pseudo_labels_upsampled` cannot take these arguments; empty when it can."""
    return refused_dtype(logits.dtype) or refused_stride(stride)


def pseudo_labels_upsampled(
    logits: Tensor, labels: Tensor, organs: Sequence[int], gamma: float, stride: int, per_slice: bool
) -> tuple[Tensor, Tensor]:
    """Kernel of `smile_fast::pseudo_labels_upsampled`; results as in the reference."""
    # The op can be called without its public function, and a wrong size would read foreign memory.
    check_tensor("logits", logits, tuple(DTYPES), torch.device("cpu"))
    check_tensor("labels", labels, (torch.uint8,), logits.device)
    if labels.ndim != 3:
        raise ValueError(f"labels must have shape [D, H, W], got {list(labels.shape)}")
    depth, height, width = labels.shape
    check_core_stride(stride)
    check_channels(logits, "D, K", MAX_ORGANS)
    check_feature_grid(logits, "D, K", (height, width), stride)
    check_shape("labels", labels, (logits.shape[0], height, width), "[D, H, W]")
    if any(not 0 <= organ < logits.shape[1] for organ in organs):
        raise ValueError(f"organs must be numbers in 0..{logits.shape[1] - 1}, got {list(organs)}")
    logits, labels = logits.contiguous(), labels.contiguous()
    overlay = torch.empty_like(labels)
    counts = labels.new_empty((len(organs), 3), dtype=torch.int64)
    CORE.pseudo_labels_upsampled(
        dtype=DTYPES[logits.dtype],
        logits=logits.data_ptr(),
        labels=labels.data_ptr(),
        depth=depth,
        channels=logits.shape[1],
        height=height,
        width=width,
        stride=stride,
        organs=list(organs),
        gamma=gamma,
        per_slice=per_slice,
        overlay=overlay.data_ptr(),
        counts=counts.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return overlay, counts
