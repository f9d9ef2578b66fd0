"""Which voxels are beyond the room that every missing organ has, and so are background."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import label_map_upsampled
from smile_fast.training.low_pixels import voxels_in_low_pixels

_FINER = 2  # cells of the grid that edges are found on, to a low pixel and axis


def beyond_rooms(
    logits: Tensor,  # [D, K, h, w]
    labels: Tensor,  # [D, H, W]
    organs: Sequence[int],
    rooms: Sequence[int | None],
    stride: int,
) -> Tensor:
    """Return the voxels [D, H, W] bool that have no human label and that no missing organ has room for.

    An organ's room is what lies above a logit of its own, its edge. It is found on a grid of twice as many low pixels,
    each of which stands for the free voxels in it; one label map of logits that are moved by it tells which voxels lie
    above. So a room is some percent smaller than it is wanted, and no score of a voxel's size is made or sorted.

    Args:
        logits: low resolution.
        labels: uint8, human labels, on the same device.
        organs: those that are missing.
        rooms: how many voxels may be each of them; None for its candidates, the voxels with p > 0.5.
        stride: pixels of a low pixel.
    """
    free = labels == 0
    voxels = _in_cells(free, stride).flatten()
    moved = logits[:, list(organs)].float().contiguous()
    for number, room in enumerate(rooms):
        if room is not None:
            moved[:, number] -= _edge(_finer(moved[:, number]).flatten(), voxels, room)
    height, width = labels.shape[1:]
    return free & (label_map_upsampled(moved, height, width, stride) == 0)


def _finer(low: Tensor) -> Tensor:
    """Logits [D, h, w] at the centres of the cells [D, h', w']."""
    return F.interpolate(low[:, None], scale_factor=float(_FINER), mode="bilinear", align_corners=False)[:, 0]


def _in_cells(free: Tensor, stride: int) -> Tensor:
    """How many voxels of a mask [D, H, W] each cell has, float64 [D, h', w']: a share of those of its low pixel."""
    voxels = voxels_in_low_pixels(free, stride).double() / _FINER**2
    return voxels.repeat_interleave(_FINER, dim=1).repeat_interleave(_FINER, dim=2)


def _edge(logits: Tensor, voxels: Tensor, room: int) -> Tensor:
    """The logit [] above which cells [n] together have at most as many voxels as there is room."""
    ordered, order = logits.sort(descending=True)
    fitting = (voxels[order].cumsum(0) <= room).sum()
    beyond = ordered[-1:] - 1  # of an organ that has room for everything
    return torch.cat([ordered, beyond])[fitting]
