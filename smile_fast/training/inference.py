"""A trained network over whole cases: low-resolution logits and label maps."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile_fast.models import Segmenter
from smile_fast.models.segmenter import resample_slices
from smile_fast.ops import label_map_upsampled
from smile_runtime.volume.preprocessing import BodyBox, slice_context, whole_box


@torch.inference_mode()
def iterate_logits(
    model: Segmenter,
    image: Any,  # [D, H, W] int16 HU, an array or a compressed array
    batch_size: int = 8,
    box: BodyBox | None = None,
    scan_stride: int | None = None,
) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """Low-resolution logits [n, M, h, w] of slices, with the numbers of those slices.

    The network is switched to evaluation mode and back.

    Args:
        model: the network.
        image: the case.
        batch_size: slices at a time.
        box: the slices, rows and columns that the network sees; all of them if None.
        scan_stride: pixels of the case per pixel of the logits; None if its pixels are the network's.
    """
    stride = model.config.output_stride
    device = next(model.parameters()).device
    slices = np.asarray(image[:], dtype=np.int16)
    box = whole_box(slices.shape) if box is None else box
    cut = box.crop(slices)
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(box.slices), batch_size):
            shown = np.array(box.slices[first : first + batch_size])
            hu = torch.from_numpy(slice_context(cut, shown, model.config.channels)).to(device)
            yield shown, model(resample_slices(hu, scan_stride or stride, stride))
    finally:
        model.train(was_training)


def predict_logits(
    model: Segmenter,
    image: Any,
    batch_size: int = 8,
    *,
    box: BodyBox | None = None,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Low-resolution logits [n, M, h, w] of a case, or of a box of it, float32 on the model's device.

    For `spacing` see `predict_labels`.
    """
    stride = model.config.scan_stride(spacing)
    return torch.cat([logits.float() for _, logits in iterate_logits(model, image, batch_size, box, stride)])


def predict_labels(
    model: Segmenter,
    image: Any,
    batch_size: int = 8,
    *,
    box: BodyBox | None = None,
    spacing: Sequence[float] | None = None,
) -> NDArray[np.uint8]:
    """Label map [D, H, W] of a whole case, on its own grid: 0 or the organ's value; 0 outside of the box.

    Args:
        model: the network.
        image: the case, [D, H, W] int16 HU.
        batch_size: slices at a time.
        box: what the network sees; everything if None.
        spacing: (z, y, x) of the case, mm, by which its pixels are brought to the network's; None if they are.
    """
    box = whole_box(image.shape) if box is None else box
    labels = np.zeros(image.shape, dtype=np.uint8)
    target = box.crop(labels)
    (height, width), stride = box.size, model.config.scan_stride(spacing)
    for shown, logits in iterate_logits(model, image, batch_size, box, stride):
        decided = label_map_upsampled(logits, height, width, stride, model.config.head == "softmax")
        target[shown] = decided.cpu().numpy()
    return labels
