"""Axial slices as small RGB pictures: CT in grey, label maps as translucent fills and outlines.

Slices order is radiological already: the patient's right is on the left, anterior is up.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from smile_fast.report.palette import rgb

BODY_HU = -300  # between air (-1000) and fat (-100)
FILL = 0.45
PICTURE_WIDTH = 420  # pixels of a picture that shares its row with two others at most
SMALL_WIDTH = 320


@dataclass(frozen=True)
class Layer:
    """One mask over the CT: filled, outlined, or both."""

    mask: NDArray[np.bool_]  # [H, W]
    fill: str | None = None  # #RRGGBB
    outline: str | None = None  # #RRGGBB


@dataclass(frozen=True)
class Frame:
    """The part of a slice that is shown and the number of picture pixels it gets."""

    rows: slice
    columns: slice
    height: int
    width: int


def frame_of(hu: NDArray[np.int16], spacing: tuple[float, float], panels: int) -> Frame:
    """Frame the body with a margin, in its true proportions.

    Args:
        hu: [H, W] slice in HU.
        spacing: (y, x) mm.
        panels: number of pictures in the row.
    """
    body = hu > BODY_HU
    labels, found = ndimage.label(body)
    if found > 1:  # the largest piece is the body; the rest is the table
        body = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    rows, columns = _extent(np.any(body, axis=1)), _extent(np.any(body, axis=0))
    tall, wide = (rows.stop - rows.start) * spacing[0], (columns.stop - columns.start) * spacing[1]
    width = PICTURE_WIDTH if panels <= 3 else SMALL_WIDTH
    return Frame(rows, columns, max(1, round(width * tall / wide)), width)


def draw(
    hu: NDArray[np.int16],  # [H, W]
    window: tuple[float, float],
    frame: Frame,
    layers: Sequence[Layer] = (),
) -> str:
    """Draw layers over a windowed slice, first layer lowest.

    Args:
        hu: [H, W] slice in HU.
        window: (lowest, highest) HU of the grey scale.
        frame: what is shown.
        layers: masks [H, W].

    Returns:
        The picture as a data URI (PNG).
    """
    size = (frame.width, frame.height)
    low, high = window
    grey = np.clip((hu[frame.rows, frame.columns].astype(np.float32) - low) / (high - low), 0, 1)
    enlarged = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
    canvas = np.repeat(np.clip(enlarged, 0, 1)[..., None], 3, axis=2)
    for layer in layers:
        part = layer.mask[frame.rows, frame.columns].astype(np.float32)
        # Interpolating the mask and cutting at one half gives a smooth outline instead of a staircase.
        mask = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BILINEAR)) > 0.5
        if layer.fill is not None:
            canvas[mask] = (1 - FILL) * canvas[mask] + FILL * np.array(rgb(layer.fill)) / 255
        if layer.outline is not None:
            edge = mask & ~ndimage.binary_erosion(mask, iterations=2)
            canvas[edge] = np.array(rgb(layer.outline)) / 255
    picture = Image.fromarray(np.round(canvas * 255).astype(np.uint8))
    file = io.BytesIO()
    # 256 colours are enough for grey and a dozen tints, at a third of the size.
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def informative_slice(counts: NDArray[np.int64]) -> int:
    """Pick the slice on which the most organs are near their largest area.

    Args:
        counts: [D, K] voxels per slice and organ.

    Returns:
        Slice index; the middle slice when no organ is there at all.
    """
    largest = counts.max(axis=0, initial=0)
    if not largest.any():
        return len(counts) // 2
    share = counts / np.maximum(largest, 1)
    return int(np.argmax(share.sum(axis=1)))


def _extent(occupied: NDArray[np.bool_]) -> slice:
    """Return the occupied range with a margin of 3 %, all of it when nothing is occupied."""
    (indices,) = np.nonzero(occupied)
    if len(indices) == 0:
        return slice(0, len(occupied))
    margin = max(1, round(0.03 * (indices[-1] - indices[0])))
    return slice(max(0, int(indices[0]) - margin), min(len(occupied), int(indices[-1]) + 1 + margin))
