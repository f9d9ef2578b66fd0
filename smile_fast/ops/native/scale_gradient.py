"""The backward pass of the losses in C++, on the CPU: csrc/core/masked_bce/scale_gradient.h."""

import math

import torch
from torch import Tensor

from smile_fast.ops.checks import check_shape, check_tensor
from smile_fast.ops.native.core import CORE, DTYPES, UNUSABLE, refused_dtype


def can_scale(grad: Tensor) -> bool:
    """Return whether `scale_gradient` takes a gradient: a plain one, not one that torch.compile traces."""
    plain = type(grad) is Tensor and grad.device.type == "cpu" and grad.is_contiguous()
    return not UNUSABLE and plain and not refused_dtype(grad.dtype)


def scale_gradient(
    grad: Tensor,  # [B, K, *S], overwritten
    factors: Tensor,  # [B, K] float64
) -> None:
    """Multiply every plane by its factor; planes whose factor is 1 are neither read nor written."""
    check_tensor("factors", factors, (torch.float64,), grad.device)
    check_shape("factors", factors, tuple(grad.shape[:2]), "[B, K]")
    factors = factors.contiguous()
    CORE.scale_gradient(
        dtype=DTYPES[grad.dtype],
        gradient=grad.data_ptr(),
        factors=factors.data_ptr(),
        planes=factors.numel(),
        voxels=math.prod(grad.shape[2:]),
        threads=torch.get_num_threads(),
    )
