"""When two volumes lie on one grid: the one comparison of affines, for headers, label maps and predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

Array = npt.NDArray[Any]

GRID_TOLERANCE_VOXELS = 0.1
"""How far two grids may lie apart at any corner of the volume: the rounding of quaternions, float32 and decimal digits
in a header, not a misplacement; half a voxel is where programs that count from a voxel's corner or centre differ."""


class OtherGridError(ValueError):
    """Two volumes lie on different grids; its text says how they differ.

    Attributes:
        shape: Of the volume, in the grid's order of axes.
        offset_mm: The largest distance along an axis of the body between their corners; None where the shapes differ.
    """

    def __init__(self, shape: tuple[int, ...], how: str, offset_mm: float | None = None) -> None:
        """Note the difference."""
        super().__init__(how)
        self.shape, self.offset_mm = shape, offset_mm


def corner_offsets(
    grid: Array,  # [4, 4]
    other: Array,  # [4, 4]
    shape: Sequence[int],
) -> Array:
    """How far the corner voxels of a volume under another affine lie from those under its own.

    Returns:
        [8, 3] in the unit of the affines.
    """
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array(shape) - 1
    offsets: Array = corners @ (np.asarray(other) - np.asarray(grid)).T
    return offsets[:, :3]


def same_grid(
    grid: Array,  # [4, 4]
    other: Array,  # [4, 4]
    shape: Sequence[int],
) -> bool:
    """Whether no corner of a volume moves by more than `GRID_TOLERANCE_VOXELS`, along any axis of the grid.

    Args:
        grid: [4, 4] voxel index to a place; invertible.
        other: [4, 4] likewise.
        shape: (X, Y, Z) of both.
    """
    voxels = np.linalg.solve(np.asarray(grid)[:3, :3], corner_offsets(grid, other, shape).T)  # [3, 8]
    return bool(np.abs(voxels).max() <= GRID_TOLERANCE_VOXELS)


def onto_grid(
    data: Array,  # [X, Y, Z]
    affine: Array,  # [4, 4]
    grid: Array,  # [4, 4]
    shape: Sequence[int],
) -> Array:
    """A volume in another order or direction of axes, turned into that of a grid; nothing is interpolated.

    Args:
        data: [X, Y, Z] in its own order of axes.
        affine: [4, 4] its voxel index to millimetres; invertible.
        grid: [4, 4] the grid's voxel index to millimetres; invertible.
        shape: Of the grid.

    Returns:
        A view of ``data`` of that shape.

    Raises:
        OtherGridError: The voxels of the two do not lie on each other.
    """
    turn = io_orientation(np.linalg.solve(grid, affine))  # voxel to voxel
    view: Array = apply_orientation(data, turn)
    if view.shape != tuple(shape):
        raise OtherGridError(view.shape, f"{_by(view.shape)} voxels instead of {_by(shape)}")
    placed = np.asarray(affine) @ inv_ornt_aff(turn, data.shape)
    if not same_grid(grid, placed, shape):
        offset = float(np.abs(corner_offsets(grid, placed, shape)).max())
        raise OtherGridError(view.shape, _difference(np.asarray(grid), placed, shape), offset)
    return view


def _difference(grid: Array, placed: Array, shape: Sequence[int]) -> str:
    """What two affines of one shape differ in, the most telling first."""
    sizes, others = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (grid, placed))
    if (np.abs(others - sizes) * np.array(shape) > GRID_TOLERANCE_VOXELS * sizes).any():
        return f"voxels of {_by(np.round(others, 4))} mm instead of {_by(np.round(sizes, 4))} mm"
    straight = placed.copy()
    straight[:3, 3] += grid[:3, 3] - placed[:3, 3]
    if same_grid(grid, straight, shape):
        return f"shifted by {', '.join(f'{step:.3g}' for step in (placed - grid)[:3, 3])} mm"
    return "turned or sheared"


def _by(sizes: Any) -> str:
    return "x".join(f"{size:g}" for size in sizes)
