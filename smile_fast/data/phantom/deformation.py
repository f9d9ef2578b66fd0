"""Real label maps as patients: read, deform smoothly, resample, and build a trunk around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from smile_fast.data.phantom.fields import Field, Grid, Space, cover, smooth_noise, superellipse, union, warp
from smile_fast.data.phantom.painting import Canvas
from smile_fast.data.phantom.scanners import Scanner
from smile_fast.data.phantom.trunk import Build, Shell, add_chest, add_trunk
from smile_runtime.errors import InputError
from smile_runtime.io.files import read_json
from smile_runtime.io.nifti import read_labels
from smile_runtime.io.scan_files import list_scans, refuse_dicom
from smile_runtime.names import normal_name
from smile_runtime.volume.preprocessing import to_slices

# Tissue and, for hollow organs, content and thickness of the wall in mm. Anything else is painted as bowel wall.
_TISSUES = {"kidney_right": "kidney", "kidney_left": "kidney", "gallbladder": "bile"}
_SOLID = ("liver", "pancreas", "spleen", "aorta", "inferior_vena_cava")
_HOLLOW = {
    "stomach": ("stomach", 5.0),
    "duodenum": ("bowel", 4.0),
    "small_bowel": ("bowel", 3.5),
    "colon": ("colon", 3.0),
}
_DIRECTIONS = 32  # of the convex hull


@dataclass(frozen=True)
class Source:
    """One patient's label map, in slices order.

    Attributes:
        labels: [D, H, W] uint8.
        spacing: (z, y, x) mm.
    """

    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label maps.

    Attributes:
        files: the maps, sorted by name.
        values: organ name to value.
    """

    files: tuple[Path, ...]
    values: dict[str, int]

    @classmethod
    def open(cls, folder: Path) -> "LabelMaps":
        """List a folder's maps; reads none.

        Raises:
            InputError: no folder, no map in it, or no usable labels.json.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: not a folder; give --labelmaps one with *.nii.gz and labels.json")
        files = tuple(list_scans(folder)[0])
        if not files:
            refuse_dicom(folder)
            raise InputError(f"{folder}: holds no label map; give --labelmaps a folder with *.nii.gz files")
        return cls(files, _read_values(folder / "labels.json"))

    def pick(self, split: int, index: int) -> Path:
        """The map of a case: held-out cases (split 1) come from other patients, where there are two at least."""
        reserved = len(self.files) // 4 or len(self.files) // 2
        first_reserved = len(self.files) - reserved
        pool = self.files[first_reserved:] if split and reserved else self.files[:first_reserved]
        return pool[index % len(pool)]


def _read_values(path: Path) -> dict[str, int]:
    wanted = 'write {"labels": {"liver": 1, ...}} with values 1 to 255'
    described = read_json(path, wanted)
    try:
        names = {normal_name(name): int(value) for name, value in described["labels"].items() if name != "background"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: does not name the label values; {wanted}") from error
    if not names or len(set(names.values())) < len(names) or not all(1 <= v <= 255 for v in names.values()):
        raise InputError(f"{path}: does not name the label values; {wanted}")
    return names


@lru_cache(maxsize=4)
def load_source(path: Path) -> Source:
    """Read a label map.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    volume = read_labels(path)
    labels, geometry = to_slices(volume.data, volume.affine)
    if not labels.any():
        raise InputError(f"{path}: has no labelled voxel; remove it from the folder")
    return Source(np.ascontiguousarray(labels), geometry.spacing)


def painted(
    rng: np.random.Generator,
    maps: LabelMaps,
    path: Path,
    organs: Sequence[str],
    size: int,
    slices: int,
    scanner: Scanner | None = None,
) -> Canvas:
    """Make a patient from a label map.

    Args:
        rng: the case's generator.
        maps: the folder.
        path: the patient's map.
        organs: the labelled organs; the scan covers them.
        size: rows and columns of a slice.
        slices: number of slices.
        scanner: of the case's source, if it has one; its slice distance changes the number of slices.

    Raises:
        InputError: the map cannot be read, or holds none of the organs.
    """
    source = load_source(path)
    build = Build.draw(rng)
    grid, centre = _frame(rng, source, build, [maps.values[organ] for organ in organs], size, slices, path)
    if scanner is not None:
        step, *sides = grid.spacing
        count = scanner.slices(slices)
        height, width = (side * scanner.pixel for side in sides)
        grid = Grid((count, size, size), (step * slices / count, height, width))
    fine, factor = _refine(grid, source)
    labels = _resample(rng, source, fine, centre)
    masks = {organ: _share(labels == value, factor) for organ, value in maps.values.items() if (labels == value).any()}
    canvas = Canvas(rng, grid, organs, scanner)
    z, y, x = np.meshgrid(*grid.axes, indexing="ij")
    _add_surroundings(canvas, Space(x, y, z, grid.axes, 0.0), masks, build, rng)
    for organ in sorted(masks, key=lambda name: name in _HOLLOW, reverse=True):
        _add_organ(canvas, organ, masks[organ], rng)
    return canvas


def _frame(
    rng: np.random.Generator, source: Source, build: Build, values: list[int], size: int, slices: int, path: Path
) -> tuple[Grid, NDArray[np.float64]]:
    """Grid around the labelled organs, and the point of the source, (z, y, x) mm, in its middle."""
    wanted = np.nonzero(np.isin(source.labels, values).any(axis=(1, 2)))[0]
    if not len(wanted):
        raise InputError(f"{path}: holds none of the organs; choose others, or remove it from the folder")
    seen = (source.labels > 0).any(axis=0)
    rows, columns = np.nonzero(np.asarray(seen).any(axis=1))[0], np.nonzero(np.asarray(seen).any(axis=0))[0]
    dz, dy, dx = source.spacing
    extent = float(wanted[-1] - wanted[0] + 1) * dz * rng.uniform(1.02, 1.12)
    trunk = float(columns[-1] - columns[0]) * dx + 2 * (build.fat + build.wall + 4)
    pixel = trunk * rng.uniform(1.08, 1.18) / size
    # The back muscles lie behind every label, so that the trunk's middle is behind the labels' middle.
    middle = np.array(
        [(wanted[0] + wanted[-1]) / 2 * dz, (rows[0] + rows[-1]) / 2 * dy + 8, (columns[0] + columns[-1]) / 2 * dx]
    )
    return Grid((slices, size, size), (extent / slices, pixel, pixel)), middle


def _refine(grid: Grid, source: Source) -> tuple[Grid, tuple[int, ...]]:
    """A grid of twice the resolution along the axes on which the source has it, for partial volumes."""
    factor = tuple(2 if step >= 1.5 * fine else 1 for step, fine in zip(grid.spacing, source.spacing, strict=True))
    depth, height, width = (n * f for n, f in zip(grid.shape, factor, strict=True))
    z, y, x = (step / f for step, f in zip(grid.spacing, factor, strict=True))
    return Grid((depth, height, width), (z, y, x)), factor


def _resample(rng: np.random.Generator, source: Source, grid: Grid, centre: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Nearest labels under a random scale, rotation and smooth displacement, [D, H, W] uint8."""
    space = warp(rng, grid, 4.5, 65.0)
    scale = rng.uniform(0.93, 1.07, 3)
    angle = rng.normal(0, np.radians(3))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    points = (space.z, cos * space.y - sin * space.x, cos * space.x + sin * space.y)
    inside = np.ones(grid.shape, bool)
    flat = np.zeros(grid.shape, np.int64)
    for point, factor, middle, step, count in zip(
        points, scale, centre, source.spacing, source.labels.shape, strict=True
    ):
        index = np.rint((point * np.float32(factor) + np.float32(middle)) / np.float32(step)).astype(np.int64)
        inside &= (index >= 0) & (index < count)
        flat = flat * count + np.clip(index, 0, count - 1)
    return np.where(inside, source.labels.ravel()[flat], 0).astype(np.uint8)


def _share(mask: NDArray[np.bool_], factor: tuple[int, ...]) -> Field:
    """Share of each voxel that a mask on the refined grid covers."""
    fz, fy, fx = factor
    parts = [mask[i::fz, j::fy, k::fx] for i in range(fz) for j in range(fy) for k in range(fx)]
    total = np.zeros(parts[0].shape, np.float32)
    for part in parts:
        total += part
    return total / np.float32(len(parts))


def _add_surroundings(
    canvas: Canvas, space: Space, masks: dict[str, Field], build: Build, rng: np.random.Generator
) -> None:
    """Trunk and chest around the organs: the wall follows their convex hull, the spine their vessels."""
    grid = canvas.grid
    inside = _hull(space, np.add.reduce(list(masks.values())) > 0.5) - np.float32(4)
    inside = inside + 2.0 * smooth_noise(rng, grid, 90.0)
    spine_x, spine_y = _spine(space, masks)
    # The muscles of the back lie behind everything that is labelled.
    back = superellipse(space, (spine_x, spine_y + 16), (88, 50), 2.6)
    muscle = union(inside - np.float32(build.wall), back, 30)
    shell = Shell(muscle - np.float32(build.fat), muscle, inside)
    shifted = space.around(spine_x)
    cavity = add_trunk(canvas, shifted, shell, spine_y, build, rng)
    dome = _dome(grid, [masks[name] for name in ("liver", "spleen", "stomach") if name in masks])
    add_chest(canvas, shifted, cavity, dome, float(np.quantile(space.z - dome, 0.9)))


def _hull(space: Space, mask: NDArray[np.bool_]) -> Field:
    """Distance to the convex hull of each slice's labels, smoothed along z, [D, H, W] mm."""
    distance = np.full(mask.shape, -np.inf, np.float32)
    for angle in np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS):
        along = np.float32(np.cos(angle)) * space.x + np.float32(np.sin(angle)) * space.y
        reach = np.where(mask, along, -np.inf).max(axis=(1, 2))
        # Slices with few labels borrow from the whole: the trunk does not shrink with what was drawn.
        reach = ndimage.gaussian_filter1d(np.maximum(reach, 0.9 * reach.max()), 2.0, mode="nearest")
        np.maximum(distance, along - reach.astype(np.float32)[:, None, None], out=distance)
    return distance


def _spine(space: Space, masks: dict[str, Field]) -> tuple[float, float]:
    """Middle of the vertebral bodies, (x, y) mm: behind the great vessels, else between the kidneys, else behind."""
    for pair, behind in ((("aorta", "inferior_vena_cava"), 30.0), (("kidney_right", "kidney_left"), 6.0)):
        if all(name in masks for name in pair):
            means = [[np.average(axis, weights=masks[name]) for axis in (space.x, space.y)] for name in pair]
            x, y = np.mean(means, axis=0)
            return float(x), float(y + behind)
    labelled = np.add.reduce(list(masks.values())) > 0.5
    return float(space.x[labelled].mean()), float(np.quantile(space.y[labelled], 0.85))


def _dome(grid: Grid, masks: list[Field]) -> Field:
    """Distance to a smooth surface over the tops of the upper organs, [D, H, W] mm, negative below it."""
    z = grid.axes[0]
    if not masks:
        return np.full(grid.shape, -100, np.float32)
    filled = np.maximum.reduce(masks) > 0.3
    top = np.where(filled.any(axis=0), z[len(z) - 1 - np.argmax(filled[::-1], axis=0)], np.nan)
    known = np.isfinite(top)
    blur = [18.0 / step for step in grid.spacing[1:]]
    weight = ndimage.gaussian_filter(known.astype(np.float32), blur) + np.float32(1e-6)
    height = ndimage.gaussian_filter(np.where(known, top, 0).astype(np.float32), blur) / weight
    height = np.maximum(height, np.where(known, top, -np.inf)) + np.float32(3)
    distance: Field = ((z[:, None, None] - height) * 0.7).astype(np.float32)
    return distance


def _add_organ(canvas: Canvas, organ: str, mask: Field, rng: np.random.Generator) -> None:
    """Paint one organ; a hollow one with its content, a kidney with its medulla."""
    grid = canvas.grid
    used = ndimage.find_objects((mask > 0).astype(np.int8))[0]
    box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in used)
    box = (box[0], box[1], box[2])
    part = np.ascontiguousarray(mask[box])
    tissue = _TISSUES.get(organ, organ if organ in _SOLID else "stomach_wall" if organ == "stomach" else "bowel_wall")
    canvas.add(tissue, box, part, organ)
    if organ in _HOLLOW or tissue == "kidney":
        depth = ndimage.distance_transform_edt(part > 0.5, sampling=grid.spacing).astype(np.float32)
        depth = np.float32(0.5 * grid.spacing[2]) - depth
        if tissue == "kidney":
            canvas.add("medulla", box, cover(depth + 8, 4 * grid.spacing[2]), organ)
        else:
            content, thickness = _HOLLOW[organ]
            canvas.fill(content, box, depth, thickness, organ, rng.uniform(-0.4, 0.75))
    if organ == "liver":
        vessel = np.hypot(smooth_noise(rng, grid, 45.0), smooth_noise(rng, grid, 45.0)) * np.float32(20) - np.float32(4)
        canvas.add("hepatic_vessel", box, part * cover(vessel[box], grid.spacing[2]), organ)
