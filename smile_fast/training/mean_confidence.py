"""How sure the network is of the pseudo-labels that it gives: what a human wants to know before looking at them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smile_fast.ops.reference import scores_by_stride
from smile_runtime.label_map import PSEUDO_BIT

_SLICES = 16  # at a time: 17 MB of scores at 512 x 512


def mean_confidences(
    logits: Tensor,  # [D, K, h, w]
    overlay: Tensor,  # [D, H, W]
    organs: Sequence[int],
    stride: int,
) -> dict[int, float]:
    """Mean probability of the pseudo-labels of a case, by organ.

    Only slices that show a pseudo-label of an organ are upsampled for it.

    Args:
        logits: low resolution, on any device.
        overlay: uint8 pseudo-labels, on the same device or the host.
        organs: those that may have some.
        stride: pixels of a low pixel.

    Returns:
        organ -> mean over its pseudo-labels, in (0, 1]; without the organs that have none.

    Sync:
        The slices that show an organ, and its sum.
    """
    found: dict[int, float] = {}
    for organ in organs:
        value = PSEUDO_BIT | (organ + 1)
        shown = (overlay == value).flatten(1).any(dim=1).nonzero().flatten()
        total, voxels = 0.0, 0
        for positions in torch.split(shown, _SLICES):
            part = (overlay[positions] == value).to(logits.device)
            low = logits.detach()[positions.to(logits.device), organ]
            probabilities = scores_by_stride(low, part.shape, stride)[part].sigmoid()
            total += float(probabilities.sum(dtype=torch.float64))
            voxels += probabilities.numel()
        if voxels:
            found[organ] = total / voxels
    return found
