"""What lies in the pixels of a network's own, low resolution."""

import torch
from torch import Tensor
from torch.nn import functional as F


def voxels_in_low_pixels(mask: Tensor, stride: int) -> Tensor:
    """How many voxels of a mask [D, H, W] bool lie in each low pixel, int64 [D, h, w].

    Args:
        mask: of full resolution.
        stride: pixels of a low pixel, on both axes; at the lower and right border it may have fewer.
    """
    depth, height, width = mask.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = F.pad(mask, (0, columns * stride - width, 0, rows * stride - height))
    blocks = padded.view(depth, rows, stride, columns, stride)
    return blocks.sum(dim=4, dtype=torch.int32).sum(dim=2)
