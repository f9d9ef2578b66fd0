"""Which voxels are beyond the room that every missing organ has, and so are background."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from smile_fast.ops import label_map_upsampled
from smile_fast.training.low_pixels import voxels_in_low_pixels
from smile_runtime.label_map import PSEUDO_BACKGROUND

_FINER = 2  # cells of the grid that edges are found on, to a low pixel and axis
_SAMPLED = 256  # on a CPU, one cell in so many, but 1024 at least, says where an edge lies, more or less
_FEWEST = 1024
_GOLDEN = (5**0.5 - 1) / 2
_BLOCK = 2**19  # voxels that a CPU works on at a time: they stay in a core's cache


def background_beyond_rooms(
    overlay: Tensor,  # [D, H, W]
    logits: Tensor,  # [D, K, h, w]
    labels: Tensor,  # [D, H, W]
    organs: Sequence[int],
    rooms: Sequence[int | None],
    stride: int,
) -> None:
    """Make pseudo-background, in place, where nothing is and no missing organ has room for a voxel.

    An organ's room is what lies above a logit of its own, its edge. It is found on a grid of twice as many low pixels,
    each of which stands for the free voxels in it; a label map of logits that are moved by it tells which voxels lie
    above. So a room is some percent smaller than it is wanted, and no score of a voxel's size is made or sorted.

    Args:
        overlay: uint8 pseudo-labels; where there is one, it stays.
        logits: low resolution, on the same device as all others. NaN is below everything.
        labels: uint8, human labels.
        organs: those that are missing.
        rooms: how many voxels may be each of them; None for its candidates, the voxels with p > 0.5.
        stride: pixels of a low pixel.

    Sync:
        Nothing is read on the host, but for `_about` on a CPU.
    """
    moved = _moved(logits, labels, organs, rooms, stride)
    height, width = labels.shape[1:]
    for some in _blocks(labels):
        taken = label_map_upsampled(moved[some], height, width, stride).bitwise_or_(labels[some])
        # Bytes alone: a comparison and a mask take a CPU five times as long. A pseudo-label has the bit already.
        overlay[some].bitwise_or_(taken.clamp_(max=1).bitwise_xor_(1).mul_(PSEUDO_BACKGROUND))


def _moved(logits: Tensor, labels: Tensor, organs: Sequence[int], rooms: Sequence[int | None], stride: int) -> Tensor:
    """Logits [D, n, h, w] float32 of some organs, each less its edge."""
    voxels = _in_cells(labels, stride)
    moved = torch.stack([logits[:, organ] for organ in organs], dim=1)  # a list of indices would be sent from the host
    moved = moved.float().nan_to_num_(nan=torch.finfo(torch.float32).min)
    for number, room in enumerate(rooms):
        if room is not None:
            moved[:, number] -= _edge(_finer(moved[:, number]).flatten(), voxels, room * _FINER**2)
    return moved


def _finer(low: Tensor) -> Tensor:
    """Logits [D, h, w] at the centres of the cells [D, h', w']."""
    return F.interpolate(low[:, None], scale_factor=float(_FINER), mode="bilinear", align_corners=False)[:, 0]


def _in_cells(labels: Tensor, stride: int) -> Tensor:
    """How many voxels [cells] without a label the low pixel of each cell has: `_FINER`^2 times the cell's own."""
    every = voxels_in_low_pixels(torch.ones_like(labels[:1], dtype=torch.bool), stride)
    drawn = [voxels_in_low_pixels(labels[some].clamp(max=1).view(torch.bool), stride) for some in _blocks(labels)]
    voxels = every - torch.cat(drawn)
    depth, height, width = voxels.shape
    return voxels[:, :, None, :, None].expand(depth, height, _FINER, width, _FINER).flatten()


def _blocks(labels: Tensor) -> list[slice]:
    """Slices that are worked on together: what a CPU's cache holds, and all on a GPU."""
    some = len(labels) if labels.is_cuda else max(1, _BLOCK // labels[0].numel())
    return [slice(first, first + some) for first in range(0, len(labels), some)]


def _edge(logits: Tensor, voxels: Tensor, room: int) -> Tensor:
    """The logit [1] above which cells [n] together have at most as many voxels as there is room.

    Cells of equal logits may come in any order: it is the same number. On a GPU all cells are sorted; on a CPU those
    that can be the edge by a sample of them, and all if it was misleading.
    """
    if not logits.is_cuda:
        logits, voxels, room = _about(logits, voxels, room)
    ordered, order = logits.sort(descending=True)
    fitting = (voxels[order].cumsum(0) <= room).sum()
    beyond = ordered[-1:] - 1  # of an organ that has room for everything
    return torch.cat([ordered, beyond]).gather(0, fitting[None])


def _about(logits: Tensor, voxels: Tensor, room: int) -> tuple[Tensor, Tensor, int]:
    """Cells among which the edge is, and the room that those above them leave."""
    everything = logits, voxels, room
    number = max(_FEWEST, len(logits) // _SAMPLED)
    if len(logits) < 4 * number:
        return everything
    # Multiples of the golden ratio: evenly spread, and in no step with rows and slices.
    chosen = (torch.arange(number, dtype=torch.float64) * _GOLDEN % 1 * len(logits)).long()
    sample, order = logits[chosen].sort(descending=True)
    sums = voxels[chosen[order]].cumsum(0) * (len(logits) / number)
    place = int((sums <= room).sum())
    spread = 3 * int(place**0.5) + 3  # three standard deviations
    if place + spread >= number:
        return everything
    likely = (logits >= sample[place + spread]).nonzero()[:, 0]
    logits, voxels = logits[likely], voxels[likely]
    near = logits <= sample[max(0, place - spread)]
    left = room - int(voxels[~near].sum())
    logits, voxels = logits[near], voxels[near]
    return (logits, voxels, left) if 0 <= left < int(voxels.sum()) else everything
