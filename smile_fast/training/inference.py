"""A trained network over whole cases: low-resolution logits and label maps."""

from collections.abc import Callable, Iterator, Sequence
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
            hu = _to_device(slice_context(cut, shown, model.config.channels), device)
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
    return queue_labels(model, image, batch_size, box=box, spacing=spacing)()


def queue_labels(
    model: Segmenter,
    image: Any,
    batch_size: int = 8,
    *,
    box: BodyBox | None = None,
    spacing: Sequence[float] | None = None,
) -> Callable[[], NDArray[np.uint8]]:
    """Queue `predict_labels` on the device: what it returns waits for the label map, in any thread.

    So the device has its next case before the host has taken this one from it. The label map is made on the device,
    1 byte a voxel of the box, and crosses the bus once. On the CPU all is done at once.

    Sync: none on CUDA before the result is asked for, which waits for this case alone.
    """
    box = whole_box(image.shape) if box is None else box
    labels = np.zeros(image.shape, dtype=np.uint8)
    target = box.crop(labels)
    (height, width), stride = box.size, model.config.scan_stride(spacing)
    decided = (
        (shown, label_map_upsampled(logits, height, width, stride, model.config.head == "softmax"))
        for shown, logits in iterate_logits(model, image, batch_size, box, stride)
    )
    device = next(model.parameters()).device
    if device.type != "cuda":
        for shown, batch in decided:
            target[shown] = batch.numpy()
        return lambda: labels

    found = torch.empty((len(box.slices), height, width), dtype=torch.uint8, device=device)
    first = 0
    for shown, batch in decided:
        found[first : first + len(shown)] = batch
        first += len(shown)
    host = torch.empty(found.shape, dtype=torch.uint8, pin_memory=True).copy_(found, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(device))

    def wait() -> NDArray[np.uint8]:
        copied.synchronize()
        target[list(box.slices)] = host.numpy()
        return labels

    return wait


def _to_device(array: NDArray[np.int16], device: torch.device) -> Tensor:
    """Copy through pinned memory, where the host need not wait for what the device does now."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
