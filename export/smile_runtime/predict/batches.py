"""From the slices of a box to labels, batch by batch: how many at a time, and of which sizes on a GPU."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from smile_runtime.errors import AllocationError
from smile_runtime.model.card import ModelCard
from smile_runtime.model.exported import Model
from smile_runtime.model.session import DEVICES
from smile_runtime.volume.preprocessing import BodyBox, slice_context

# Pixels of a batch: an inference over less does not keep the cores busy.
_BATCH_PIXELS = {"cpu": 512 * 512, "cuda": 16 * 512 * 512, "tensorrt": 16 * 512 * 512}
# Bytes of a batch inside the session. Free memory would be no better bound: labels could then differ from run to run.
_BATCH_BYTES = 4 * 2**30
# A pixel, and a pixel and organ; on a CPU ResNet-18 took 277 bytes a pixel for 3 organs and 1034 for 126 (6.2 an
# organ), and ResNet-50 at most 470 for 3.
_FEATURE_BYTES, _ORGAN_BYTES = 512, 8
# Pixels of a side: a GPU's plans are made anew for every size, and take up to half a second.
_DEVICE_MULTIPLE = 64


def fitting_batch(card: ModelCard, provider: str, pixels: int, pixel_spacing: tuple[float, float] | None) -> int:
    """Slices per inference.

    Args:
        card: Of the model.
        provider: Where it computes.
        pixels: Of a slice.
        pixel_spacing: (y, x) of the slices, mm; None if their pixels are the model's.
    """
    seen = pixels = max(1, pixels)  # by the network
    if card.pixels is not None and pixel_spacing is not None:
        scale = card.pixels.output_stride / card.pixels.scan_stride(pixel_spacing)
        seen = math.ceil(pixels * scale**2)
    needed = seen * _FEATURE_BYTES + pixels * _ORGAN_BYTES * len(card.organs)
    return max(1, min(_BATCH_PIXELS[provider] // seen, _BATCH_BYTES // needed))


def seen_box(box: BodyBox, shape: tuple[int, ...], provider: str) -> BodyBox:
    """What the network sees for a box of a volume [D, H, W]: on a GPU more of the scan around it, so that sizes repeat.

    Height and width go up to the next multiple of 64 pixels of the scan, or to all of it where it has fewer. Nothing is
    filled in.
    """
    if provider not in DEVICES or not box.slices:
        return box
    rows, columns = (_widened(*pair) for pair in ((box.rows, shape[1]), (box.columns, shape[2])))
    return replace(box, rows=rows, columns=columns)


def _widened(side: slice, extent: int) -> slice:
    wanted = min(extent, math.ceil((side.stop - side.start) / _DEVICE_MULTIPLE) * _DEVICE_MULTIPLE)
    stop = min(extent, side.start + wanted)
    return slice(stop - wanted, stop)


def label_slices(
    model: Model,
    slices: npt.NDArray[np.int16],  # [D, H, W]
    box: BodyBox,
    labels: npt.NDArray[np.uint8],  # [D, H, W]
    batch: int | None,
    provider: str,
    pixel_spacing: tuple[float, float] | None,
) -> Iterator[int]:
    """Segment the slices of a box, and nothing else.

    On a GPU all batches of a scan have one size, the wanted one or a power of two for a scan of fewer slices: the last
    one repeats a slice, whose labels are dropped.

    Args:
        model: Computes the labels.
        slices: [D, H, W] int16 HU in slices order; any strides.
        box: What to compute.
        labels: [D, H, W] uint8; the box of it is written.
        batch: Slices per inference, as long as memory holds them; `fitting_batch` if None.
        provider: Where the model computes.
        pixel_spacing: (y, x) of the slices, mm; None if their pixels are the model's.

    Yields:
        The number of slices that are done, after each batch.

    Raises:
        AllocationError: Not even one slice fits into memory.
        InputError: The model fails on these slices.
    """
    seen = seen_box(box, slices.shape, provider)
    height, width = seen.size
    rows, columns = (
        slice(inner.start - outer.start, inner.stop - outer.start)
        for inner, outer in ((box.rows, seen.rows), (box.columns, seen.columns))
    )
    cut, target = seen.crop(slices), box.crop(labels)
    batch = batch or fitting_batch(model.card, provider, height * width, pixel_spacing)
    fills, done = provider in DEVICES, 0
    if fills:  # no more than a scan of few slices needs, and still few sizes
        batch = min(batch, 1 << (len(box.slices) - 1).bit_length())
    hu = np.empty((0, model.card.channels, height, width), np.int16)
    while done < len(box.slices):
        numbers = box.slices[done : done + batch]
        wanted = [*numbers, *[numbers[-1]] * (batch - len(numbers) if fills else 0)]
        try:
            if len(hu) < len(wanted):
                hu = np.empty((len(wanted), *hu.shape[1:]), np.int16)
            context = slice_context(cut, wanted, model.card.channels, out=hu[: len(wanted)])  # [N, C, h, w]
            found = model.labels(context, pixel_spacing)
        except AllocationError:
            if len(wanted) == 1:
                raise
            batch = len(wanted) // 2
            continue
        for number, label in zip(numbers, found, strict=False):
            target[number] = label[rows, columns]
        done += len(numbers)
        yield done
