"""Argument checks that the ops share. They read types, shapes and dtypes only: nothing here waits for a device."""

import torch
from torch import Tensor

from smile_runtime.label_map import LABEL_VALUES, WORD_BITS

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def check_tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    """Raise TypeError unless `value` is a tensor of one of `dtypes`, ValueError unless it is on `device`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of {_one_of(dtypes)}, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must have dtype {_one_of(dtypes)}, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device} like the first argument, got {value.device}")


def _one_of(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)


def check_float_tensor(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a tensor of a float dtype, on whatever device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a float tensor, got {type(value).__name__}")
    check_tensor(name, value, FLOATS, value.device)


def check_shape(name: str, value: Tensor, wanted: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `value` has the wanted shape."""
    if tuple(value.shape) != wanted:
        raise ValueError(f"{name} must have shape {meaning} = {list(wanted)}, got {list(value.shape)}")


def check_table(table: Tensor, batch: int, organs: int) -> None:
    """Raise ValueError unless the table belongs to `batch` images of `organs` organs."""
    words = -(-organs // WORD_BITS)
    check_shape("table", table, (batch, LABEL_VALUES, 2, words), "[B, 256, 2, ceil(K / 32)]")


def check_loss(
    logits: Tensor, labels: Tensor, table: Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Raise TypeError or ValueError unless these are arguments of masked_bce, the logits of one of `dtypes`."""
    batch, organs, *spatial = logits.shape
    check_tensor("logits", logits, dtypes, device)
    check_tensor("labels", labels, (torch.uint8,), device)
    check_tensor("table", table, (torch.int32,), device)
    check_shape("labels", labels, (batch, *spatial), "[B, *S]")
    check_table(table, batch, organs)


def check_upsampled_loss(
    logits: Tensor, labels: Tensor, table: Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Raise TypeError or ValueError unless these are arguments of masked_bce_upsampled, logits of one of `dtypes`."""
    check_tensor("logits", logits, dtypes, device)
    check_tensor("labels", labels, (torch.uint8,), device)
    check_tensor("table", table, (torch.int32,), device)
    check_upsampled_sizes(logits, labels)
    check_table(table, logits.shape[0], logits.shape[1])


def check_upsampled_sizes(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless logits [B, K, *low] can be interpolated to the size of labels [B, *S]."""
    if logits.ndim not in (4, 5) or logits.shape[1] == 0:
        raise ValueError(
            f"logits must have shape [B, K, h, w] or [B, K, d, h, w] with K >= 1, got {list(logits.shape)}"
        )
    if labels.ndim != logits.ndim - 1 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels must have shape [B, *S] with B = {logits.shape[0]} and {logits.ndim - 2} spatial axes, "
            f"got {list(labels.shape)}"
        )
    if 0 in logits.shape[2:] and 0 not in labels.shape:
        raise ValueError(f"logits must have no empty spatial axis, got {list(logits.shape)}")


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is one of mean, sum, none."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_stride(stride: object) -> None:
    """Raise TypeError unless `stride` is an int, ValueError unless it is positive."""
    if isinstance(stride, bool) or not isinstance(stride, int):
        raise TypeError(f"stride must be an int, got {type(stride).__name__}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")


def check_channels(logits: Tensor, planes: str, most: int) -> None:
    """Raise ValueError unless logits [planes, h, w] have 1 to `most` channels."""
    if logits.ndim != 4 or not 1 <= logits.shape[1] <= most:
        raise ValueError(f"logits must have shape [{planes}, h, w] with 1 to {most} channels, got {list(logits.shape)}")


def check_feature_grid(logits: Tensor, planes: str, size: tuple[int, int], stride: int) -> None:
    """Raise ValueError unless logits [planes, h, w] are those of slices of `size`, of which a feature is `stride`."""
    if logits.ndim != 4:
        raise ValueError(f"logits must have shape [{planes}, h, w], got {list(logits.shape)}")
    rows, columns = (-(-pixels // stride) for pixels in size)
    meaning = f"[{planes}, ceil(H / stride), ceil(W / stride)]"
    check_shape("logits", logits, (logits.shape[0], logits.shape[1], rows, columns), meaning)
