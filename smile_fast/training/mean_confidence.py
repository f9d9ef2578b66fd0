"""How sure the network is of the pseudo-labels that it gives: what a human wants to know before looking at them."""

from collections.abc import Sequence

from torch import Tensor

from smile_fast.training.low_pixels import voxels_in_low_pixels
from smile_runtime.label_map import PSEUDO_BIT


def mean_confidences(
    logits: Tensor,  # [D, K, h, w]
    overlay: Tensor,  # [D, H, W]
    organs: Sequence[int],
    stride: int,
) -> dict[int, float]:
    """Mean probability of the pseudo-labels of a case, by organ: of their low pixels; nothing is upsampled.

    Args:
        logits: low resolution, on any device.
        overlay: uint8 pseudo-labels, on the same device or the host.
        organs: those that may have some.
        stride: pixels of a low pixel.

    Returns:
        organ -> mean over its pseudo-labels, in (0, 1]; without the organs that have none.

    Sync:
        The sum of each organ.
    """
    found: dict[int, float] = {}
    for organ in organs:
        voxels = voxels_in_low_pixels(overlay == (PSEUDO_BIT | (organ + 1)), stride).to(logits.device)
        if total := int(voxels.sum()):
            probabilities = logits[:, organ].detach().double().sigmoid()
            found[organ] = min(1.0, float((voxels * probabilities).sum()) / total)
    return found
