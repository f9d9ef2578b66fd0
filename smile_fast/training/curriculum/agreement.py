"""How far the predictions of a case agree when its image is shifted a little, and made a little brighter or darker."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Shift along (H, W) in low pixels, of a whole number so that nothing is interpolated, and along HU.
PERTURBATIONS = ((0, 0, 0), (1, 0, 20), (-1, 0, -20), (0, 1, -20), (0, -1, 20))


def agreeing_logits(
    predict: Callable[[NDArray[np.int16]], Tensor],
    image: NDArray[np.int16],  # [D, H, W]
    stride: int,
) -> tuple[Tensor, Tensor]:
    """Return the mean logits less, and plus, one standard deviation over the perturbations, [n, K, h, w] float32 each.

    What lies at the border of the image comes in again on the other side, where there is air.

    Args:
        predict: image to logits [n, K, h, w].
        image: HU.
        stride: pixels of the image to a low pixel.
    """
    total = squares = torch.zeros(())
    for rows, columns, hu in PERTURBATIONS:
        moved = np.roll(image, (rows * stride, columns * stride), axis=(1, 2)).astype(np.int32) + hu
        changed = moved.clip(-(2**15), 2**15 - 1).astype(np.int16)
        logits = predict(changed).float().roll((-rows, -columns), dims=(2, 3))
        total, squares = total.to(logits.device) + logits, squares.to(logits.device) + logits.square()
    mean = total / len(PERTURBATIONS)
    spread = (squares / len(PERTURBATIONS) - mean.square()).clamp(min=0).sqrt()
    return mean - spread, mean + spread
