"""scale_gradient: the backward pass of the losses, a gradient that the forward pass made times what arrives for it."""

import torch
from torch import Tensor

from smile_fast.ops.checks import FLOATS, check_dtype, check_shape, check_tensor
from smile_fast.ops.native.core import Core, native
from smile_fast.ops.native_cuda.core import cuda
from smile_fast.ops.registry import define, overload

NAME = "scale_gradient"


def _check(gradient: Tensor, factors: Tensor) -> None:
    check_dtype("gradient", gradient, *FLOATS)
    if gradient.ndim < 2:
        raise ValueError(f"gradient must have shape [B, K, *S], got {list(gradient.shape)}")
    if not gradient.is_contiguous():  # it is overwritten where it is
        raise ValueError(f"gradient must be contiguous, got strides {gradient.stride()}")
    check_tensor("factors", factors, torch.float64, gradient.device)
    check_shape("factors", factors, tuple(gradient.shape[:2]), "[B, K]")


def _launch(core: Core, gradient: Tensor, factors: Tensor) -> None:
    voxels = gradient.shape[2:].numel()
    core.run(NAME, gradient.dtype, gradient=gradient, factors=factors, channels=factors.numel(), voxels=voxels)


define(
    NAME,
    "(Tensor(a!) gradient, Tensor factors) -> ()",
    check=_check,
    fake=lambda gradient, factors: None,
    native=native(_launch),
    cuda=cuda(_launch),
    slow_reference=False,
)


def scale_gradient(
    gradient: Tensor,  # [B, K, *S]
    factors: Tensor,  # [B, K]
    *,
    implementation: str | None = None,
) -> None:
    """Multiply a gradient by one factor an (image, organ), in place; where that is 1, no memory is touched.

    Args:
        gradient: [B, K, *S] float32, bfloat16, float16 or float64, contiguous; overwritten.
        factors: [B, K] float64.
        implementation: None for the best one here, or a name of `smile_fast.ops.available`; a name never falls back.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices disagree, implementation that cannot be used, gradient that is not contiguous.

    Numerics: a product in float32 (float64 for a float64 gradient), rounded once; all implementations agree bit for
        bit. The reference reads and writes everything.
    Sync: reads nothing on the host.
    """
    overload(NAME, implementation, gradient, factors)(gradient, factors)
