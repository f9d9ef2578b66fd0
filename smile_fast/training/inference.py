"""A trained network over whole cases: low-resolution logits and label maps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile_fast.models import Segmenter
from smile_fast.ops import label_map_upsampled
from smile_runtime.preprocessing import slice_context


@torch.inference_mode()
def iterate_logits(
    model: Segmenter,
    image: Any,  # [D, H, W] int16 HU, an array or a compressed array
    batch_size: int = 8,
) -> Iterator[tuple[range, Tensor]]:
    """Low-resolution logits [n, M, h, w] of consecutive slices, with the numbers of those slices.

    The network is switched to evaluation mode and back.
    """
    device = next(model.parameters()).device
    slices = np.asarray(image[:], dtype=np.int16)
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(slices), batch_size):
            planes = range(first, min(first + batch_size, len(slices)))
            hu = torch.from_numpy(slice_context(slices, planes, model.config.channels))
            yield planes, model(hu.to(device))
    finally:
        model.train(was_training)


def predict_logits(model: Segmenter, image: Any, batch_size: int = 8) -> Tensor:
    """Low-resolution logits [D, M, h, w] of a whole case, float32 on the model's device."""
    return torch.cat([logits.float() for _, logits in iterate_logits(model, image, batch_size)])


def predict_labels(model: Segmenter, image: Any, batch_size: int = 8) -> NDArray[np.uint8]:
    """Label map [D, H, W] of a whole case: 0 or the organ's value."""
    labels = np.empty(image.shape, dtype=np.uint8)
    height, width, stride = image.shape[1], image.shape[2], model.config.output_stride
    for planes, logits in iterate_logits(model, image, batch_size):
        decided = label_map_upsampled(logits, height, width, stride, model.config.head == "softmax")
        labels[planes.start : planes.stop] = decided.cpu().numpy()
    return labels
