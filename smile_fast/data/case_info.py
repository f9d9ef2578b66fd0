"""What the index of a store knows of a case: the declared types that msgspec reads it as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.dataset import Split
from smile_fast.supervision.states import State
from smile_runtime.volume.preprocessing import BodyBox, BodyRule

IMAGE, LABELS = "image", "labels"
"""The arrays of a case."""

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""SHA-256, hexadecimal."""

SliceCounts = dict[str, tuple[int, bytes]]
"""organ -> (first slice, voxels in each slice from there as uint32); an organ without a voxel has no entry.

JSON holds the bytes, little-endian, as base64: numbers of 10,000 cases that nobody asks for cost no time when they are
read, and little memory.
"""
_COUNT = np.dtype("<u4")
_FAR_MM = 1e9  # no scan is as large, and squares of larger numbers are none


@dataclass(frozen=True)
class StoredBox:
    """The body's box of a case as it was found when the case was converted.

    Attributes:
        depth: number of slices of the case.
        slices: those that show the body, as ranges [first, stop). rows, columns: of each of them, [first, stop).
        threshold_hu, margin_mm: the rule that it was found by.
        version: `BodyRule.VERSION` of the program that found it.
    """

    depth: int
    slices: tuple[tuple[int, int], ...]
    rows: tuple[int, int]
    columns: tuple[int, int]
    threshold_hu: float
    margin_mm: float
    version: int

    def __post_init__(self) -> None:
        """Refuse ranges that no box has; a `ValueError` says so."""
        bounds = [bound for there in self.slices for bound in there]
        if any(there <= here for here, there in pairwise([-1, *bounds, self.depth + 1])) or not all(
            0 <= first <= stop for first, stop in (self.rows, self.columns)
        ):
            raise ValueError("a body's box that lies outside of the volume")

    @classmethod
    def of(cls, box: BodyBox, rule: BodyRule) -> "StoredBox":
        """What this program found by a rule."""
        shown = box.slices
        breaks = [n for n, (here, there) in enumerate(pairwise(shown), start=1) if there != here + 1]
        bounds = [0, *breaks, len(shown)] if shown else [0]
        return cls(
            depth=box.depth,
            slices=tuple((shown[first], shown[stop - 1] + 1) for first, stop in pairwise(bounds)),
            rows=(box.rows.start, box.rows.stop),
            columns=(box.columns.start, box.columns.stop),
            threshold_hu=rule.threshold_hu,
            margin_mm=rule.margin_mm,
            version=BodyRule.VERSION,
        )

    @property
    def box(self) -> BodyBox:
        """What is worth computing."""
        shown = tuple(z for first, stop in self.slices for z in range(first, stop))
        return BodyBox(self.depth, shown, slice(*self.rows), slice(*self.columns))

    def answers(self, rule: BodyRule) -> bool:
        """Whether this program would find the same box by a rule."""
        found_by = (self.version, self.threshold_hu, self.margin_mm)
        return found_by == (BodyRule.VERSION, rule.threshold_hu, rule.margin_mm)


@dataclass(frozen=True)
class CaseInfo:
    """What the index knows of one case.

    Attributes:
        name: the case.
        split: train or test.
        shape: (D, H, W) in slices order.
        spacing: (z, y, x) mm.
        affine: 4x4, voxel (x, y, z) = (W, H, D) index to mm (RAS), of the volume in slices order.
        states: organ -> state, in the order of the store's organs.
        runs: voxels per slice of the visible human labels; a hidden organ has no entry. See `counts`.
        sources: SHA-256 of the image and label files that the case was made from.
        arrays: digests of the stored arrays (`IMAGE`, `LABELS`), which name their files; empty before they are written.
        body: the body's box.
        source: the dataset that the case comes from, by sources.csv; "" where nothing says it.
    """

    name: str
    split: Split
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, float, float, float], ...]
    states: dict[str, State]
    runs: SliceCounts
    sources: dict[str, str]
    arrays: dict[str, Digest]
    body: StoredBox
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what no case is; a `ValueError` names it."""
        depth, height, width = self.shape
        if (
            self.name in ("", "..")  # a name is a folder: it must not lead elsewhere
            or Path(self.name).name != self.name
            or "\0" in self.name
            or min(self.shape) < 1
            or not all(0 < size < _FAR_MM for size in self.spacing)
            or not _is_affine(self.affine)
            or not counts_fit(self.runs, depth, self.states, height * width)
            or any(self.states[organ] is State.HIDDEN for organ in self.runs)
            or (self.body.depth != depth or self.body.rows[1] > height or self.body.columns[1] > width)
        ):
            raise ValueError(f"entry of case {self.name!r}")

    def counts(self) -> NDArray[np.int64]:  # [D, K]
        """Visible human voxels per slice and organ; hidden organs count 0. They take ten times the memory of `runs`."""
        return spread_counts(self.runs, self.shape[0], tuple(self.states))

    @property
    def directions(self) -> NDArray[np.float64]:  # [3, 3]
        """Unit columns: where the axes z, y, x point to; not at right angles if the gantry was tilted."""
        steps = np.array(self.affine)[:3, 2::-1]
        return np.asarray(steps / np.linalg.norm(steps, axis=0))

    def check_stored(self, organs: Sequence[str]) -> None:
        """Make sure that this is a case of a store of these organs, with its arrays.

        Raises:
            ValueError: it is not.
        """
        if tuple(self.states) != tuple(organs) or set(self.arrays) != {IMAGE, LABELS}:
            raise ValueError(f"organs or arrays of case {self.name!r}")


def _is_affine(rows: Sequence[Sequence[float]]) -> bool:
    """Whether a matrix says where voxels lie: of space, in millimetres, and with a volume."""
    if len(rows) != 4 or any(abs(value) > _FAR_MM for row in rows for value in row) or tuple(rows[3]) != (0, 0, 0, 1):
        return False
    (a, b, c, _), (d, e, f, _), (g, h, i, _), _ = rows
    return abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) > 0


def gather_counts(
    counts: NDArray[np.int64],  # [D, K]
    organs: Sequence[str],
) -> SliceCounts:
    """Voxels per slice and organ as they are stored: from the first slice that shows the organ to the last."""
    found: SliceCounts = {}
    for organ, column in zip(organs, counts.T, strict=True):
        inside = np.flatnonzero(column)
        if inside.size:
            first, last = int(inside[0]), int(inside[-1])
            found[organ] = (first, column[first : last + 1].astype(_COUNT).tobytes())
    return found


def spread_counts(stored: SliceCounts, depth: int, organs: Sequence[str]) -> NDArray[np.int64]:  # [D, K]
    """The inverse of `gather_counts`; see `counts_fit`."""
    counts = np.zeros((depth, len(organs)), np.int64)
    for k, organ in enumerate(organs):
        if organ in stored:
            first, voxels = stored[organ]
            values = np.frombuffer(voxels, _COUNT)
            counts[first : first + len(values), k] = values
    return counts


def counts_fit(
    stored: SliceCounts, depth: int, organs: Sequence[str] | Mapping[str, object], most: int = 2**31
) -> bool:
    """Whether counts are those of a volume: of so many slices, of these organs, of at most so many voxels a slice."""
    for organ, (first, voxels) in stored.items():
        slices, rest = divmod(len(voxels), _COUNT.itemsize)
        if rest or organ not in organs or not 0 <= first <= depth - slices:
            return False
    every = b"".join(voxels for _, voxels in stored.values())
    return int(np.frombuffer(every, _COUNT).max(initial=0)) <= most
