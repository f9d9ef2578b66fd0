"""What lies in the pixels of a network's own, low resolution."""

import torch
from torch import Tensor
from torch.nn import functional as F


def voxels_in_low_pixels(mask: Tensor, stride: int) -> Tensor:
    """How many voxels of a mask [D, H, W] bool lie in each low pixel, int32 [D, h, w].

    Whole rows are added to each other, in bytes: on a CPU several times as fast as a sum over the blocks.

    Args:
        mask: of full resolution.
        stride: pixels of a low pixel, on both axes, at most 255; at the lower and right border it may have fewer.
    """
    height, width = mask.shape[1:]
    lower, right = -height % stride, -width % stride
    padded = F.pad(mask, (0, right, 0, lower)) if lower or right else mask
    ones = padded.view(torch.uint8)
    rows = ones[:, ::stride].clone()  # [D, h, w * stride]
    for row in range(1, stride):
        rows += ones[:, row::stride]
    return rows.reshape(*rows.shape[:2], -1, stride).sum(dim=3, dtype=torch.int32)
