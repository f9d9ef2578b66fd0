"""What the index of a store knows of a case."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.dataset import Split
from smile_fast.supervision.states import State
from smile_runtime.volume.preprocessing import BodyBox, BodyRule

IMAGE, LABELS = "image.b2nd", "labels.b2nd"

SliceCounts = dict[str, tuple[int, tuple[int, ...]]]
"""organ -> (first slice, voxels in each slice from there); an organ without a voxel has no entry."""


@dataclass(frozen=True)
class StoredBox:
    """The body's box of a case as it was found when the case was converted.

    Attributes:
        box: what is worth computing.
        rule: the numbers that it was found by.
        version: `BodyRule.VERSION` of the program that found it.
    """

    box: BodyBox
    rule: BodyRule
    version: int = field(default_factory=lambda: BodyRule.VERSION)

    def answers(self, rule: BodyRule) -> bool:
        """Whether this program would find the same box by a rule."""
        return self.version == BodyRule.VERSION and self.rule == rule

    def to_json(self) -> dict[str, Any]:
        """The box's entry of the index; slices as ranges [first, stop)."""
        shown = self.box.slices
        breaks = [n for n, (here, there) in enumerate(pairwise(shown), start=1) if there != here + 1]
        bounds = [0, *breaks, len(shown)] if shown else [0]
        return {
            "version": self.version,
            "threshold_hu": self.rule.threshold_hu,
            "margin_mm": self.rule.margin_mm,
            "slices": [[shown[first], shown[stop - 1] + 1] for first, stop in pairwise(bounds)],
            "rows": [self.box.rows.start, self.box.rows.stop],
            "columns": [self.box.columns.start, self.box.columns.stop],
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], shape: tuple[int, int, int]) -> "StoredBox":
        """Read the box's entry of the index.

        Args:
            entry: what `to_json` gives.
            shape: (D, H, W) of the case.

        Raises:
            ValueError, TypeError, KeyError: the entry is damaged, or is that of another shape.
        """
        depth, *extents = shape
        (top, bottom), (left, right), version = entry["rows"], entry["columns"], entry["version"]
        bounds = [bound for first, stop in entry["slices"] for bound in (first, stop)]
        if (
            any(type(number) is not int for number in (*bounds, top, bottom, left, right, version))
            or any(there <= here for here, there in pairwise([-1, *bounds, depth + 1]))
            or not 0 <= top <= bottom <= extents[0]
            or not 0 <= left <= right <= extents[1]
        ):
            raise ValueError(f"a body's box that lies outside of {shape}")
        shown = tuple(z for first, stop in entry["slices"] for z in range(first, stop))
        rule = BodyRule(entry["threshold_hu"], entry["margin_mm"])
        return cls(BodyBox(depth, shown, slice(top, bottom), slice(left, right)), rule, version)


@dataclass(frozen=True)
class CaseInfo:
    """What the index knows of one case.

    Attributes:
        name: the case.
        split: train or test.
        shape: (D, H, W) in slices order.
        spacing: (z, y, x) mm.
        affine: 4x4, voxel (x, y, z) = (W, H, D) index to mm (RAS), of the volume in slices order.
        states: organ -> state.
        runs: voxels per slice of the visible human labels; a hidden organ has no entry. See `counts`.
        sources: SHA-256 of the image and label files that the case was made from.
        arrays: SHA-256 of the stored files, by their names (`IMAGE`, `LABELS`).
        body: the body's box.
    """

    name: str
    split: Split
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    states: dict[str, State]
    runs: SliceCounts
    sources: dict[str, str]
    arrays: dict[str, str]
    body: StoredBox

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: it can count for itself, from a small part of the memory."""
        return {name: value for name, value in vars(self).items() if name != "counts"}

    @cached_property
    def counts(self) -> NDArray[np.int64]:  # [D, K]
        """Visible human voxels per slice and organ, read-only; hidden organs count 0."""
        counts = spread_counts(self.runs, self.shape[0], tuple(self.states))
        counts.flags.writeable = False
        return counts

    @property
    def directions(self) -> NDArray[np.float64]:  # [3, 3]
        """Unit columns: where the axes z, y, x point to; not at right angles if the gantry was tilted."""
        steps = np.array(self.affine)[:3, 2::-1]
        return np.asarray(steps / np.linalg.norm(steps, axis=0))

    def to_json(self) -> dict[str, Any]:
        """The case's entry of the index."""
        return {
            "name": self.name,
            "split": self.split,
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "affine": [list(row) for row in self.affine],
            "states": {organ: state.value for organ, state in self.states.items()},
            "counts": counts_to_json(self.runs),
            "sources": self.sources,
            "arrays": self.arrays,
            "body": self.body.to_json(),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], organs: tuple[str, ...]) -> "CaseInfo":
        """Read an entry of the index.

        Raises:
            ValueError, TypeError, KeyError: the entry is damaged.
        """
        depth, height, width = (int(size) for size in entry["shape"])
        z, y, x = (float(size) for size in entry["spacing"])
        affine = tuple(tuple(float(value) for value in row) for row in entry["affine"])
        info = cls(
            name=entry["name"],
            split=entry["split"],
            shape=(depth, height, width),
            spacing=(z, y, x),
            affine=affine,
            states={organ: State(entry["states"][organ]) for organ in organs},
            runs=counts_from_json(entry["counts"]),
            sources=dict(entry["sources"]),
            arrays={file: str(entry["arrays"][file]) for file in (IMAGE, LABELS)},
            body=StoredBox.from_json(entry["body"], (depth, height, width)),
        )
        if (
            not isinstance(info.name, str)
            or info.name in ("", "..")  # a name is a folder: it must not lead elsewhere
            or Path(info.name).name != info.name
            or info.split not in ("train", "test")
            or min(info.shape) < 1
            or not all(math.isfinite(size) and size > 0 for size in info.spacing)
            or [len(row) for row in affine] != [4, 4, 4, 4]
            or len(entry["states"]) != len(organs)
            or not counts_fit(info.runs, depth, organs)
            or any(info.states[organ] is State.HIDDEN for organ in info.runs)
        ):
            raise ValueError(f"entry of case {info.name!r}")
        return info


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
            found[organ] = (first, tuple(column[first : last + 1].tolist()))
    return found


def spread_counts(stored: SliceCounts, depth: int, organs: Sequence[str]) -> NDArray[np.int64]:  # [D, K]
    """The inverse of `gather_counts`."""
    counts = np.zeros((depth, len(organs)), np.int64)
    for k, organ in enumerate(organs):
        if organ in stored:
            first, values = stored[organ]
            counts[first : first + len(values), k] = values
    return counts


def counts_to_json(stored: SliceCounts) -> dict[str, list[Any]]:
    """Plain JSON types: organ -> [first slice, [voxels]]."""
    return {organ: [first, list(values)] for organ, (first, values) in stored.items()}


def counts_from_json(entry: Mapping[str, Any]) -> SliceCounts:
    """The inverse of `counts_to_json`; see `counts_fit` for what it cannot know.

    Raises:
        ValueError, TypeError, AttributeError: the entry is damaged.
    """
    counts = {organ: (int(first), tuple(values)) for organ, (first, values) in entry.items()}
    if any(first < 0 or not set(map(type, values)) <= {int} for first, values in counts.values()) or any(
        min(values, default=0) < 0 or max(values, default=0) >= 2**31 for _, values in counts.values()
    ):
        raise ValueError("counts of slices")
    return counts


def counts_fit(stored: SliceCounts, depth: int, organs: Sequence[str]) -> bool:
    """Whether counts are those of a volume of so many slices and of these organs."""
    return all(organ in organs and first + len(values) <= depth for organ, (first, values) in stored.items())
