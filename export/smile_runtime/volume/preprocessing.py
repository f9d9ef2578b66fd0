"""From a volume in a file's axis order to axial slices and exactly back, for training and production alike.

Slices order: an array [D, H, W] with D = axial slices from inferior to superior, H = rows from anterior to
posterior, W = columns from the patient's right to left. Row 0 shown on top gives the radiological view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from smile_runtime.volume.body import BodyBox, BodyRule, body_box, whole_box

__all__ = [
    "ORIENTATION",
    "BodyBox",
    "BodyRule",
    "SliceGeometry",
    "body_box",
    "canonical_affine",
    "context_index",
    "from_slices",
    "slice_context",
    "slice_geometry",
    "slices_view",
    "to_slices",
    "turn_into_slices",
    "whole_box",
]

Array = npt.NDArray[Any]

ORIENTATION = "LPS"  # axis codes of a slices-order volume seen as [x, y, z] = (W, H, D)


@dataclass(frozen=True)
class SliceGeometry:
    """What it takes to bring slices back to their file's axis order.

    Attributes:
        shape: Shape of the volume in the file's axis order (X, Y, Z).
        axes: For D, H and W: the file's axis that it came from.
        flips: For D, H and W: whether that axis was reversed.
        spacing: Voxel size along (D, H, W) = (z, y, x), mm.
    """

    shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        """Shape (D, H, W) of the volume in slices order."""
        depth, height, width = (self.shape[axis] for axis in self.axes)
        return depth, height, width


def to_slices(
    data: Array,  # [X, Y, Z]
    affine: Array,  # [4, 4]
) -> tuple[Array, SliceGeometry]:
    """Bring a volume into slices order: axes are swapped and reversed, no voxel is interpolated.

    An oblique volume goes to the nearest axis-parallel order, as nibabel's ``io_orientation`` defines it.

    Args:
        data: [X, Y, Z] any dtype, in the file's own axis order.
        affine: [4, 4] voxel index to millimetres (right, anterior, superior); finite and invertible.

    Returns:
        The volume [D, H, W], C-contiguous (a copy only if it does not lie like that already), and how to
        go back.

    Raises:
        ValueError: ``data`` is not three-dimensional or ``affine`` is not finite and invertible.
    """
    if data.ndim != 3:
        raise ValueError(f"data has shape {data.shape}, [X, Y, Z] is wanted")
    geometry = slice_geometry(affine, data.shape)
    return np.ascontiguousarray(slices_view(data, geometry)), geometry


def turn_into_slices(
    data: Array,  # [X, Y, Z]
    affine: Array,  # [4, 4]
) -> tuple[Array, SliceGeometry]:
    """As `to_slices`, within the memory of ``data`` where that is possible: as axial scans mostly lie.

    Args:
        data: [X, Y, Z] any dtype, Fortran-contiguous; undefined from here on.
        affine: [4, 4] voxel index to millimetres; finite and invertible.
    """
    geometry = slice_geometry(affine, data.shape)
    if geometry.axes != (2, 1, 0) or not any(geometry.flips) or not data.flags.f_contiguous:
        return to_slices(data, affine)
    slices = np.transpose(data)
    over, *within = geometry.flips  # the stack, rows and columns
    turn = tuple(slice(None, None, -1 if flip else None) for flip in within)
    last = len(slices) - 1
    for index in range((last + 2) // 2 if over else last + 1):
        other = last - index if over else index
        turned = slices[index][turn].copy()
        if other != index:
            slices[index] = slices[other][turn].copy()
        slices[other] = turned
    return slices, geometry


def slices_view(
    data: Array,  # [X, Y, Z]
    geometry: SliceGeometry,
) -> Array:
    """The slices-order view [D, H, W] of a volume in its file's axis order: nothing is copied."""
    return np.flip(np.transpose(data, geometry.axes), _flipped_axes(geometry))


def from_slices(
    slices: Array,  # [D, H, W]
    geometry: SliceGeometry,
) -> Array:
    """Bring slices back into the file's own axis order: the exact inverse of `to_slices`.

    Args:
        slices: [D, H, W] any dtype.
        geometry: What `to_slices` returned.

    Returns:
        [X, Y, Z]: a view of ``slices``.

    Raises:
        ValueError: ``slices`` does not have the shape of ``geometry``.
    """
    if slices.shape != geometry.slices_shape:
        raise ValueError(f"slices have shape {slices.shape}, the geometry says {geometry.slices_shape}")
    flipped = np.flip(slices, _flipped_axes(geometry))
    return np.transpose(flipped, np.argsort(geometry.axes))


def slice_geometry(
    affine: Array,  # [4, 4]
    shape: Sequence[int],
) -> SliceGeometry:
    """How a volume of this affine and shape goes into slices order.

    Args:
        affine: [4, 4] voxel index to millimetres; finite and invertible.
        shape: (X, Y, Z) in the file's own axis order.

    Returns:
        The geometry, as `to_slices` returns it.

    Raises:
        ValueError: ``affine`` is not finite and invertible.
    """
    transform = _transform_to_lps(affine)  # row i: where the file's axis i goes, and +-1
    target = [int(row[0]) for row in transform]
    axes = tuple(target.index(canonical) for canonical in (2, 1, 0))
    zooms = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    flips = [bool(transform[axis, 1] < 0) for axis in axes]
    return SliceGeometry(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        axes=(axes[0], axes[1], axes[2]),
        flips=(flips[0], flips[1], flips[2]),
        spacing=(float(zooms[axes[0]]), float(zooms[axes[1]]), float(zooms[axes[2]])),
    )


def canonical_affine(
    affine: Array,  # [4, 4]
    shape: Sequence[int],
) -> npt.NDArray[np.float64]:
    """Affine of the slices-order volume seen as [x, y, z] = (W, H, D).

    Args:
        affine: [4, 4] of the file.
        shape: (X, Y, Z) in the file's own axis order.

    Returns:
        [4, 4] float64: index (w, h, d) to millimetres (right, anterior, superior).

    Raises:
        ValueError: ``affine`` is not finite and invertible.
    """
    inverse = inv_ornt_aff(_transform_to_lps(affine), tuple(shape))
    return np.asarray(np.asarray(affine, dtype=np.float64) @ inverse, dtype=np.float64)


def slice_context(
    slices: Array,  # [D, H, W]
    index: Sequence[int] | npt.NDArray[np.integer],
    channels: int,
    *,
    out: Array | None = None,  # [N, C, H, W]
) -> Array:
    """Slices with their neighbours as channels; beyond the ends the first and the last slice repeat.

    Args:
        slices: [D, H, W] any dtype.
        index: N slice numbers in 0..D-1.
        channels: Number of slices C seen at once, odd: z - C//2 .. z + C//2.
        out: Where to copy them to; a new array if None.

    Returns:
        [N, C, H, W], a copy.

    Raises:
        ValueError: ``channels`` is not a positive odd number.
        IndexError: A slice number is outside 0..D-1.
    """
    numbers = context_index(index, channels, slices.shape[0])
    if out is None:
        context: Array = slices[numbers]
        return context
    for seen, row in zip(out, numbers, strict=True):
        for channel, number in zip(seen, row, strict=True):
            channel[...] = slices[number]
    return out


def context_index(
    centre: Sequence[int] | npt.NDArray[np.integer],
    channels: int,
    depth: int,
) -> npt.NDArray[np.int64]:
    """Numbers of the slices that are seen around given slices; beyond the ends the first and the last repeat.

    Args:
        centre: N slice numbers in 0..D-1.
        channels: Number of slices C seen at once, odd: z - C//2 .. z + C//2.
        depth: Number of slices D of the volume.

    Returns:
        [N, C] int64 in 0..D-1.

    Raises:
        ValueError: ``channels`` is not a positive odd number.
        IndexError: A slice number is outside 0..D-1.
    """
    if channels < 1 or channels % 2 == 0:
        raise ValueError(f"channels is {channels}, a positive odd number is wanted")
    middle = np.asarray(centre, dtype=np.int64)
    if middle.size and not (0 <= middle.min() and middle.max() < depth):
        raise IndexError(f"slice numbers {middle.min()}..{middle.max()} are outside 0..{depth - 1}")
    neighbours: npt.NDArray[np.int64] = middle[:, None] + np.arange(channels) - channels // 2  # [N, C]
    return neighbours.clip(0, depth - 1)


def _flipped_axes(geometry: SliceGeometry) -> tuple[int, ...]:
    return tuple(axis for axis, flipped in enumerate(geometry.flips) if flipped)


def _transform_to_lps(affine: Array) -> Array:
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise ValueError("the affine is not a finite, invertible 4x4 matrix")
    wanted = axcodes2ornt(tuple(ORIENTATION))
    return np.asarray(ornt_transform(io_orientation(matrix), wanted))
