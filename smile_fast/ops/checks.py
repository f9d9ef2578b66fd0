"""Argument checks that the ops share. They read shapes, dtypes and devices only: nothing here waits for a device.

The registry runs an op's check before every implementation; that tensors are tensors, the schema has seen to.
"""

import torch
from torch import Tensor

from smile_runtime.label_map import LABEL_VALUES, MAX_ORGANS, WORD_BITS

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def check_dtype(name: str, value: Tensor, *dtypes: torch.dtype) -> None:
    """Raise TypeError unless `value` has one of the dtypes."""
    if value.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must have dtype {wanted}, got {value.dtype}")


def check_tensor(name: str, value: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Raise TypeError unless `value` has the dtype, ValueError unless it is on `device`."""
    check_dtype(name, value, dtype)
    if value.device != device:
        raise ValueError(f"{name} must be on {device} like the first argument, got {value.device}")


def check_shape(name: str, value: Tensor, wanted: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `value` has the wanted shape."""
    if value.shape != wanted:
        raise ValueError(f"{name} must have shape {meaning} = {list(wanted)}, got {list(value.shape)}")


def check_supervision(logits: Tensor, labels: Tensor, table: Tensor) -> None:
    """Raise TypeError or ValueError unless the three fit together, but for the sizes of the spatial axes."""
    check_dtype("logits", logits, *FLOATS)
    check_tensor("labels", labels, torch.uint8, logits.device)
    check_tensor("table", table, torch.int32, logits.device)
    words = -(-logits.shape[1] // WORD_BITS)
    check_shape("table", table, (logits.shape[0], LABEL_VALUES, 2, words), "[B, 256, 2, ceil(K / 32)]")


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is one of mean, sum, none."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_low(logits: Tensor, channels: str, size: tuple[int, int], stride: int, background: int = 0) -> None:
    """Raise unless low-resolution logits [N, M, h, w] become slices of `size` when they are upsampled by `stride`.

    Args:
        logits: of 1 to 126 organs, and of the background if it has a channel.
        channels: the first two axes, for the message.
        size: H, W.
        stride: high-resolution pixels a low-resolution one, on both axes.
        background: number of channels that are no organ's.
    """
    check_dtype("logits", logits, *FLOATS)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if logits.ndim != 4:
        raise ValueError(f"logits must have shape [{channels}, h, w], got {list(logits.shape)}")
    low = tuple(-(-pixels // stride) for pixels in size)
    check_shape("logits", logits, (*logits.shape[:2], *low), f"[{channels}, ceil(H / stride), ceil(W / stride)]")
    if not 1 <= logits.shape[1] - background <= MAX_ORGANS:
        raise ValueError(f"logits must have 1 to {MAX_ORGANS} organs, got shape {list(logits.shape)}")
