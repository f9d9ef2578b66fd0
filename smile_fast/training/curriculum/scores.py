"""What ranks the voxels of a case: probability, agreement or confidence, and by how much logits are too sure."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile_fast.models import Segmenter
from smile_fast.training.curriculum.agreement import agreeing_logits
from smile_fast.training.curriculum.braking import Braking
from smile_fast.training.curriculum.confidence import Heads, judged_logits
from smile_fast.training.inference import predict_logits
from smile_runtime.volume.preprocessing import BodyBox

Scores = tuple[Tensor, Tensor | None, Tensor | None]
"""Logits that say who is a candidate, what ranks candidates, and what ranks negatives; None for the logits."""


def scored_logits(
    model: Segmenter,
    image: NDArray[np.int16],  # [D, H, W] HU
    braking: Braking,
    organs: Sequence[str],
    heads: Heads | None,
    *,
    box: BodyBox,
    spacing: Sequence[float],
) -> Scores:
    """Return what a round under brakes selects by, [n, K, h, w] float32 each.

    Args:
        model: the network.
        image: the case.
        braking: of the round.
        organs: [K] names.
        heads: where the score is confidence.
        box: what the network sees.
        spacing: of the case.
    """
    warm = [braking.temperatures.get(organ, 1.0) for organ in organs]
    temperatures = torch.tensor(warm, device=next(model.parameters()).device)[:, None, None]

    def predict(changed: NDArray[np.int16]) -> Tensor:
        logits = predict_logits(model, changed, box=box, spacing=spacing)
        return logits / temperatures if braking.temperatures else logits

    if braking.score == "agreement":
        logits, upper = agreeing_logits(predict, image, model.config.scan_stride(spacing))
        return logits, None, upper
    if braking.score == "confidence" and heads is not None:
        return judged_logits(model, image, heads, temperatures, box=box, spacing=spacing)
    return predict(image), None, None
