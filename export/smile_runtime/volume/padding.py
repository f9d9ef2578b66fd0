"""Padding: what a scan holds where nothing was measured. Training and production read it as air, by this one rule.

A scanner measures a circle. What lies outside of it is a constant: air in most files, but 0 HU, which is soft tissue,
where a converter has lost what the scanner wrote, or -2000, -3024, -32768, which are no HU.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

AIR_HU = -1000
MEASURED_AIR_HU = -200  # the air around a patient and lungs lie below, fat at -120 to -50 does not
_AIR = (-1100, -900)  # HU; a constant in between is air already
_HIGHEST = np.int16(np.iinfo(np.int16).max)
_CORNER = 32  # a corner of a 32nd of the slice a side; at least
_CORNER_PIXELS = 3  # pixels; nine voxels of noise are never alike
_SAME_CIRCLE = 0.75  # of the rows of two slices; tissue has the value of the padding in fewer than the others

_Runs = npt.NDArray[np.int32]  # [D, H]


@dataclass(frozen=True)
class Padding:
    """What was found and read as air.

    Attributes:
        hu: The constant.
        voxels: How many had it.
        lowest_hu: The lowest value of all others.
    """

    hu: int
    voxels: int
    lowest_hu: int

    def to_json(self) -> dict[str, int]:
        """For a report."""
        return {"hu": self.hu, "voxels": self.voxels}


def padding_to_air(
    slices: npt.NDArray[np.int16],  # [D, H, W]
) -> Padding | None:
    """Set padding to `AIR_HU`, in place.

    Padding is a constant that fills at least one corner of a slice and is no air; in each row it reaches from an edge
    to what was measured. Where its edge is another in each slice, single voxels of its very value that touch it may be
    taken for it. A scan whose lowest value fills the corners is left alone, unless no HU is that low: its
    values were cut off there, and its air and fat are the same. So is one whose highest value fills a single corner of
    slices. Of several constants, that of most corners is the padding.

    Args:
        slices: [D, H, W] int16 HU in slices order; any strides. Changed.

    Returns:
        What was found; None, after a look at four voxels a slice, where all of them are air.
    """
    found = _constant_corners(slices)
    if found is None:
        return None
    value, shown = found
    left, right = _runs(slices, shown, value)
    if (left[shown] == slices.shape[2]).all():  # whole slices alone may be anything
        return None
    columns = np.arange(slices.shape[2], dtype=np.int32)
    voxels, lowest = 0, int(_HIGHEST)
    for index, hu in enumerate(slices):
        outside = (columns < left[index, :, None]) | (columns >= right[index, :, None])  # [H, W]
        voxels += int(np.count_nonzero(outside))
        np.copyto(hu, _HIGHEST, where=outside)
        lowest = min(lowest, int(hu.min()))
        np.copyto(hu, np.int16(AIR_HU), where=outside)
    return Padding(value, voxels, lowest)


def _constant_corners(slices: npt.NDArray[np.int16]) -> tuple[int, npt.NDArray[np.bool_]] | None:
    """The constant, no air, that fills most corners, and which slices [D] have one of them; None without any."""
    height, width = slices.shape[1:]
    side = max(_CORNER_PIXELS, min(height, width) // _CORNER)
    if min(height, width) < 2 * side:
        return None
    corners = slices[:, :: height - 1, :: width - 1]  # [D, 2, 2]
    if not ((corners < _AIR[0]) | (corners > _AIR[1])).any():
        return None
    ends = (slice(None, side), slice(-side, None))
    blocks = np.stack([slices[:, rows, columns] for rows in ends for columns in ends], axis=1)  # [D, 4, side, side]
    values = blocks[:, :, 0, 0]
    filled = (blocks == values[..., None, None]).all(axis=(2, 3)) & ((values < _AIR[0]) | (values > _AIR[1]))  # [D, 4]
    if not filled.any():
        return None
    constants, counts = np.unique(values[filled], return_counts=True)
    value = int(constants[counts.argmax()])
    low, high = int(slices.min()), int(slices.max())
    if low == high or (value >= _AIR[0] and low >= min(value, MEASURED_AIR_HU)):
        return None
    corners_of_it = (filled & (values == value)).sum(axis=1)  # [D]
    if value == high and corners_of_it.max() == 1:  # values were cut off there: bone or metal at an edge
        return None
    return value, corners_of_it > 0


def _runs(
    slices: npt.NDArray[np.int16],  # [D, H, W]
    shown: npt.NDArray[np.bool_],  # [D]
    value: int,
) -> tuple[_Runs, _Runs]:
    """Where in each row what was measured begins and ends, [D, H] each; 0 and W, or W and W, without padding."""
    width = slices.shape[2]
    runs = np.zeros((2, *slices.shape[:2]), np.int32)  # from the left and from the right
    for index in np.flatnonzero(shown):
        other = slices[index] != value  # [H, W]
        for run, row in zip(runs, (other, other[:, ::-1]), strict=True):
            run[index] = np.where(other.any(axis=1), row.argmax(axis=1), width)
    for run in runs:
        own = run[shown]
        opened, shared = _opened(own), own.min(axis=0)  # [n, H], [H]
        # Most scans have one circle: where nearly all rows are its, the longer ones hold tissue of that value.
        has_shared = (opened == shared).mean(axis=1, keepdims=True) > _SAME_CIRCLE
        run[shown] = np.where(has_shared, shared, opened)
    return runs[0], width - runs[1]


def _opened(runs: _Runs) -> _Runs:
    """Runs [D, H] without what only one or two rows have; beyond the first and the last row they go on."""
    runs = np.pad(runs, ((0, 0), (2, 2)), mode="edge")
    for combine in (np.minimum, np.maximum):
        runs = combine(combine(runs[:, :-2], runs[:, 1:-1]), runs[:, 2:])
    return runs
