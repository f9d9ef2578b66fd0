"""label_map_upsampled in C++, on the CPU: csrc/core/upsampled_labels/label_map_upsampled.h."""

import torch
from torch import Tensor

from smile_fast.ops.checks import check_channels, check_feature_grid, check_tensor
from smile_fast.ops.native.core import CORE, DTYPES, check_core_stride, refused_dtype, refused_stride
from smile_runtime.label_map import MAX_ORGANS


def refusal(logits: Tensor, height: int, width: int, stride: int, softmax: bool) -> str:
    """Return why `label_map_upsampled` cannot take these arguments; empty when it can."""
    return refused_dtype(logits.dtype) or refused_stride(stride)


def label_map_upsampled(logits: Tensor, height: int, width: int, stride: int, softmax: bool) -> Tensor:
    """Kernel of `smile_fast::label_map_upsampled`; result as in `smile_fast.ops.reference.label_map_upsampled`."""
    # The op can be called without its public function, and a wrong size would read foreign memory.
    check_tensor("logits", logits, tuple(DTYPES), torch.device("cpu"))
    check_core_stride(stride)
    check_channels(logits, "N, M", MAX_ORGANS + softmax)
    check_feature_grid(logits, "N, M", (height, width), stride)
    logits = logits.contiguous()
    labels = logits.new_empty((logits.shape[0], height, width), dtype=torch.uint8)
    CORE.label_map_upsampled(
        dtype=DTYPES[logits.dtype],
        logits=logits.data_ptr(),
        images=logits.shape[0],
        channels=logits.shape[1],
        height=height,
        width=width,
        stride=stride,
        softmax=softmax,
        labels=labels.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return labels
