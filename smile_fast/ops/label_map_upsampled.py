"""label_map_upsampled: from low-resolution logits to a label map, without a full-resolution logit."""

from typing import cast

import torch
from torch import Tensor

from smile_fast.ops.checks import check_low
from smile_fast.ops.native.core import Core, native, refused_stride
from smile_fast.ops.registry import define, overload
from smile_fast.ops.triton_kernels.core import refused_axes, triton

NAME = "label_map_upsampled"


def _check(logits: Tensor, height: int, width: int, stride: int, softmax: bool) -> None:
    for name, size in (("height", height), ("width", width)):
        if size < 0:
            raise ValueError(f"{name} must not be negative, got {size}")
    check_low(logits, "N, M", (height, width), stride, background=int(softmax))


def _fake(logits: Tensor, height: int, width: int, stride: int, softmax: bool) -> Tensor:
    return logits.new_empty((logits.shape[0], height, width), dtype=torch.uint8)


def _launch(core: Core, logits: Tensor, height: int, width: int, stride: int, softmax: bool) -> Tensor:
    labels = logits.new_empty((logits.shape[0], height, width), dtype=torch.uint8)
    shape = {"images": logits.shape[0], "channels": logits.shape[1], "grid": (height, width, stride)}
    core.run(NAME, logits.dtype, logits=logits, **shape, softmax=softmax, labels=labels)
    return labels


define(
    NAME,
    "(Tensor logits, SymInt height, SymInt width, int stride, bool softmax) -> Tensor",
    check=_check,
    fake=_fake,
    native=native(_launch, lambda logits, height, width, stride, softmax: refused_stride(stride)),
    triton=triton(_launch, lambda logits, height, width, stride, softmax: refused_axes(height, width, stride)),
)


def label_map_upsampled(
    logits: Tensor,  # [N, M, h, w]
    height: int,
    width: int,
    stride: int,
    softmax: bool = False,
    *,
    implementation: str | None = None,
) -> Tensor:
    """Upsample logits bilinearly and decide the label of every pixel.

    Sigmoid: the organ with the highest logit among those above 0, label k + 1 for channel k; 0 where there is none.
    Softmax: the channel with the highest logit; channel 0 is the background.

    Args:
        logits: [N, M, h, w] float32, bfloat16, float16 or float64, with h = ceil(H / stride), w = ceil(W / stride);
            M is K (sigmoid) or K + 1 (softmax), at most 126 organs.
        height: H of the label map.
        width: W of the label map.
        stride: pixels a low-resolution pixel, on both axes.
        softmax: whether the logits are those of K + 1 exclusive classes.
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Returns:
        [N, H, W] uint8, 0 or an organ's label value.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes disagree, a size or the stride is out of range.

    Numerics: decided in float64 (`reference.upsample_by_stride`), where the interpolation of float32 logits is exact
        but for a rounding of the last bit when the four corners differ by more than 2^19. Ties go to the lowest label;
        a NaN is never above anything. Labels equal those of `Segmenter.label_map` and of an exported graph, which
        interpolate in float32, but for the pixels where that rounding decides. All implementations agree bit for bit
        on float32, bfloat16 and float16 logits.
    Sync: reads nothing on the host.
    """
    arguments = (logits, height, width, stride, softmax)
    return cast(Tensor, overload(NAME, implementation, *arguments)(*arguments))
