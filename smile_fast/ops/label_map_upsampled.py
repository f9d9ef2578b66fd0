"""label_map_upsampled: from low-resolution logits to a label map, without a full-resolution logit."""

from typing import Any, cast

import torch
from torch import Tensor

from smile_fast.ops import reference
from smile_fast.ops.checks import check_feature_grid, check_float_tensor, check_stride
from smile_fast.ops.native import label_map_upsampled as native
from smile_fast.ops.native.core import UNUSABLE
from smile_fast.ops.registry import REFERENCE, Implementation, define, overload
from smile_fast.ops.triton_kernels.core import implementation as triton
from smile_fast.ops.triton_kernels.core import stride_refusal
from smile_runtime.label_map import MAX_ORGANS

NAME = "label_map_upsampled"


def _fake(logits: Tensor, height: int, width: int, stride: int, softmax: bool) -> Tensor:
    return logits.new_empty((logits.shape[0], height, width), dtype=torch.uint8)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _backward(ctx: Any, grad_labels: Tensor | None) -> tuple[None, None, None, None, None]:
    return None, None, None, None, None


define(
    NAME,
    "(Tensor logits, SymInt height, SymInt width, int stride, bool softmax) -> Tensor",
    [
        Implementation(
            "native", native.label_map_upsampled, devices=("cpu",), unusable=UNUSABLE, refusal=native.refusal
        ),
        triton(NAME, NAME, stride_refusal),
        Implementation(REFERENCE, reference.label_map_upsampled, devices=()),
    ],
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
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
        stride: pixels a feature pixel, on both axes.
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
    check_float_tensor("logits", logits)
    if not isinstance(softmax, bool):
        raise TypeError(f"softmax must be a bool, got {type(softmax).__name__}")
    check_stride(stride)
    for name, size in (("height", height), ("width", width)):
        if size < 0:
            raise ValueError(f"{name} must not be negative, got {size}")
    check_feature_grid(logits, "N, M", (height, width), stride)
    organs = logits.shape[1] - softmax
    if not 1 <= organs <= MAX_ORGANS:
        raise ValueError(f"logits must have 1 to {MAX_ORGANS} organs, got shape {list(logits.shape)}")
    kernel = overload(NAME, implementation, logits, height, width, stride, softmax)
    return cast(Tensor, kernel(logits, height, width, stride, softmax))
