"""How large each organ is in the cases in which it was annotated; read from the index, no array is."""

from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING

import numpy as np

from smile_fast.supervision import State

if TYPE_CHECKING:
    from smile_fast.training.view import TrainingView


@dataclass(frozen=True)
class OrganRange:
    """The largest size of an organ that the annotated cases make plausible.

    Attributes:
        ml: volume: the largest one, or the mean and two standard deviations, whichever is more.
        mean_ml: mean volume.
        mm: extent along z, from its first slice to its last one, of the case that shows the most.
    """

    ml: float
    mm: float
    mean_ml: float

    def room_ml(self, margin: float) -> float:
        """The mean volume as a ball whose radius has grown by a margin in mm, ml."""
        radius = float(np.cbrt(3 * 1000 * self.mean_ml / (4 * pi)))  # mm
        return self.mean_ml * (1 + margin / radius) ** 3


def voxel_ml(view: "TrainingView", case: str) -> float:
    """Volume of a voxel of a case, ml; smaller than the product of its sides where the gantry was tilted."""
    affine = np.asarray(view.store.cases[case].affine)
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def annotated_ranges(view: "TrainingView") -> dict[str, OrganRange]:
    """The range of every organ that an annotated case shows.

    Args:
        view: the training cases with human labels only.

    Returns:
        organ -> range; an organ that no annotated case shows has none.
    """
    ranges = {}
    for k, organ in enumerate(view.organs):
        volumes, extents = [], []
        for case in view.cases:
            shown = np.flatnonzero(view.counts[case][:, k])
            if view.states[case][k] is not State.ANNOTATED or not len(shown):
                continue
            volumes.append(float(view.counts[case][:, k].sum()) * voxel_ml(view, case))
            extents.append(float(shown[-1] - shown[0] + 1) * view.spacing(case)[0])
        if volumes:
            likely = float(np.mean(volumes) + 2 * np.std(volumes))
            ranges[organ] = OrganRange(max(max(volumes), likely), max(extents), float(np.mean(volumes)))
    return ranges
