"""Implicit geometry on a voxel grid: smooth random fields and approximate signed distances in millimetres.

Coordinates are the patient's, in mm: x to the patient's left, y to the back, z to the head, the origin in the middle of
the field of view. Arrays are in slices order, [D, H, W] = [z, y, x]. A negative distance lies inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Field = NDArray[np.float32]
Curve = NDArray[np.float64]  # [n, 4] x, y, z and radius of closely spaced points, mm
Box = tuple[slice, slice, slice]

FAR = 12.0  # no tissue reaches further beyond an organ's surface, mm: rims of fat are thinner


@dataclass(frozen=True)
class Grid:
    """The voxel grid of one case.

    Attributes:
        shape: (D, H, W) voxels.
        spacing: (z, y, x) mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @cached_property
    def axes(self) -> tuple[Field, Field, Field]:
        """Voxel centres along z, y and x, in mm, as three vectors."""
        z, y, x = (
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step in zip(self.shape, self.spacing, strict=True)
        )
        return z, y, x

    @property
    def whole(self) -> Box:
        """The block of all voxels."""
        return slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2])


@dataclass(frozen=True)
class Space:
    """Coordinates of a block of voxels in the undeformed template.

    Attributes:
        x, y, z: [D, H, W] float32, mm.
        axes: the same along z, y and x without the deformation, as three vectors.
        pad: largest deformation, mm.
    """

    x: Field
    y: Field
    z: Field
    axes: tuple[Field, Field, Field]
    pad: float

    def __getitem__(self, box: Box) -> "Space":
        z, y, x = (axis[part] for axis, part in zip(self.axes, box, strict=True))
        return Space(self.x[box], self.y[box], self.z[box], (z, y, x), self.pad)

    def around(self, x: float) -> "Space":
        """The same space with its origin at ``x`` mm."""
        z, y, along = self.axes
        return Space(self.x - np.float32(x), self.y, self.z, (z, y, along - np.float32(x)), self.pad)

    def box(self, low: Sequence[float], high: Sequence[float]) -> Box:
        """Smallest block of voxels that holds a cuboid of the template, at least one voxel wide.

        Args:
            low: lowest (x, y, z), mm.
            high: highest (x, y, z), mm.
        """
        parts = []
        for axis, a, b in zip(self.axes, reversed(low), reversed(high), strict=True):
            start, stop = (int(i) for i in np.searchsorted(axis, (a - self.pad, b + self.pad)))
            start = min(start, len(axis) - 1)
            parts.append(slice(start, max(stop, start + 1)))
        return parts[0], parts[1], parts[2]


def _basis(count: int, knots: int) -> Field:
    """Uniform cubic B-spline basis, [count, knots + 3], rows sum to one."""
    position = np.linspace(0.0, knots, count, endpoint=False) + 0.5 * knots / count
    cell = np.minimum(position.astype(np.int64), knots - 1)
    t = position - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1)
    basis = np.zeros((count, knots + 3), np.float32)
    np.put_along_axis(basis, cell[:, None] + np.arange(4), (weights / 6).astype(np.float32), axis=1)
    return basis


def smooth_noise(rng: np.random.Generator, grid: Grid, wavelength: float) -> Field:
    """A smooth random field of about zero mean and unit standard deviation.

    Args:
        rng: the case's generator.
        grid: where to evaluate.
        wavelength: distance of the spline's control points, mm.

    Returns:
        [D, H, W] float32.

    Numerics: einsum, not BLAS, whose blocking (and so rounding) may change with its thread count.
    """
    extents = [n * step for n, step in zip(grid.shape, grid.spacing, strict=True)]
    knots = [max(1, round(extent / wavelength)) for extent in extents]
    control = rng.standard_normal([k + 3 for k in knots], dtype=np.float32)
    bz, by, bx = (_basis(n, k) for n, k in zip(grid.shape, knots, strict=True))
    field: Field = np.einsum("abc,xc->abx", control, bx)
    field = np.einsum("abx,yb->ayx", field, by)
    field = np.einsum("ayx,za->zyx", field, bz)
    # A cubic B-spline of unit normal coefficients has a variance of (151/315)^3 on average.
    field *= np.float32((315 / 151) ** 1.5)
    return field


def warp(rng: np.random.Generator, grid: Grid, amplitude: float, wavelength: float, centre: float = 0.0) -> Space:
    """Coordinates of a grid under a smooth random displacement.

    Args:
        rng: the case's generator.
        grid: the voxels.
        amplitude: standard deviation of the displacement, mm; 0.6 of it along z.
        wavelength: distance of its control points, mm.
        centre: z of the grid's middle, mm.
    """
    z, y, x = grid.axes
    z = z + np.float32(centre)
    dx, dy, dz = (amplitude * smooth_noise(rng, grid, wavelength) for _ in range(3))
    dz *= np.float32(0.6)
    pad = max(float(np.abs(shift).max()) for shift in (dx, dy, dz))
    return Space(x[None, None, :] + dx, y[None, :, None] + dy, z[:, None, None] + dz, (z, y, x), pad)


def ellipsoid(
    space: Space, centre: Sequence[float], radii: Sequence[float], tilt: float = 0.0, lean: float = 0.0
) -> Field:
    """Approximate signed distance to an ellipsoid.

    Args:
        space: coordinates.
        centre: (x, y, z), mm.
        radii: half axes along x, y, z, mm.
        tilt: rotation about z, radians; positive turns x towards y.
        lean: rotation about y, radians; positive turns x towards z.
    """
    x, y, z = (a - np.float32(c) for a, c in zip((space.x, space.y, space.z), centre, strict=True))
    if tilt:
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        x, y = cos * x + sin * y, cos * y - sin * x
    if lean:
        cos, sin = np.float32(np.cos(lean)), np.float32(np.sin(lean))
        x, z = cos * x + sin * z, cos * z - sin * x
    rx, ry, rz = (np.float32(r) for r in radii)
    x, y, z = x / rx, y / ry, z / rz
    radius = np.sqrt(x * x + y * y + z * z)
    gradient = np.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2)
    # First-order distance k0 (k0 - 1) / k1; exact on the surface, and finite in the centre.
    distance: Field = radius * (radius - 1) / np.maximum(gradient, np.float32(1e-6))
    return distance


def superellipse(space: Space, centre: Sequence[float], radii: Sequence[float], power: float) -> Field:
    """Approximate signed distance to an elliptic cylinder along z.

    Args:
        space: coordinates.
        centre: (x, y), mm.
        radii: half axes along x and y, mm.
        power: 2 is an ellipse, more is boxier.
    """
    u = np.abs((space.x - np.float32(centre[0])) / np.float32(radii[0]))
    v = np.abs((space.y - np.float32(centre[1])) / np.float32(radii[1]))
    radius = (u**power + v**power) ** np.float32(1 / power)
    distance: Field = (radius - 1) * np.float32(min(radii))
    return distance


def curve(points: ArrayLike, samples: int) -> Curve:
    """Points along a Catmull-Rom spline through ``points`` [n, m]; the columns may hold a radius as well."""
    p = np.asarray(points, np.float64)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    position = np.linspace(0, len(p) - 3, samples)
    i = np.minimum(position.astype(int), len(p) - 4)
    t = (position - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    result: Curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return result


def tube(space: Space, path: Curve, height: float = 1.0) -> Field:
    """Approximate signed distance to a tube; right near it, and ``FAR`` beyond that.

    Args:
        space: coordinates.
        path: its middle line.
        height: stretch along z (a section that is taller than thick).
    """
    distance = np.full(space.x.shape, FAR, np.float32)
    for point in path:
        # A sphere matters only to the voxels near it, which are a small part of a long tube's block.
        box = tube_box(space, point[None], height)
        x, y, z, radius = point.astype(np.float32)
        square = (space.x[box] - x) ** 2
        square += (space.y[box] - y) ** 2
        square += ((space.z[box] - z) / np.float32(height)) ** 2
        np.minimum(distance[box], np.sqrt(square) - radius, out=distance[box])
    return distance


def tube_box(space: Space, path: Curve, height: float = 1.0) -> Box:
    """The block that holds a tube and `FAR` mm around it."""
    reach = path[:, 3:] * [1.0, 1.0, height] + FAR
    return space.box((path[:, :3] - reach).min(0).tolist(), (path[:, :3] + reach).max(0).tolist())


def union(a: Field, b: Field, blend: float) -> Field:
    """Smooth minimum of two distances, rounding the seam over ``blend`` mm."""
    h = np.maximum(np.float32(blend) - np.abs(a - b), 0) / np.float32(blend)
    rounded: Field = np.minimum(a, b) - h * h * np.float32(blend / 4)
    return rounded


def cover(distance: Field, edge: float) -> Field:
    """Share of a voxel that lies inside: 1 within, 0 outside, linear over ``edge`` mm across the surface."""
    share: Field = np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1)
    return share
