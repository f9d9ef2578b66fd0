"""How large each organ is in the cases in which it was annotated; read from the index, no array is."""

from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING

import numpy as np

from smile_fast.data.case_info import CaseInfo
from smile_fast.supervision import State

if TYPE_CHECKING:
    from smile_fast.training.view import TrainingView


@dataclass(frozen=True)
class OrganRange:
    """How large an organ is in the training cases in which it is annotated.

    Attributes:
        cases: number of them that show a voxel of it.
        empty: number of them that show none.
        low_ml, high_ml, mean_ml: its smallest, largest and mean volume in those that show it, ml; 0 without any.
        std_ml: standard deviation of these volumes.
        mm: extent along z, from its first slice to its last one, of the case that shows the most.
    """

    cases: int
    empty: int
    low_ml: float = 0.0
    high_ml: float = 0.0
    mean_ml: float = 0.0
    std_ml: float = 0.0
    mm: float = 0.0

    @property
    def most_ml(self) -> float:
        """The largest plausible volume: the largest one, or the mean and two standard deviations, whichever is more."""
        return max(self.high_ml, self.mean_ml + 2 * self.std_ml)

    def room_ml(self, margin: float) -> float:
        """The mean volume as a ball whose radius has grown by a margin in mm, ml."""
        radius = float(np.cbrt(3 * 1000 * self.mean_ml / (4 * pi)))  # mm
        return self.mean_ml * (1 + margin / radius) ** 3


def voxel_ml(info: CaseInfo) -> float:
    """Volume of a voxel of a case, ml; smaller than the product of its sides where the gantry was tilted."""
    affine = np.asarray(info.affine)
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def annotated_ranges(view: "TrainingView") -> dict[str, OrganRange]:
    """The range of every organ.

    Args:
        view: the training cases with human labels only.
    """
    ranges = {}
    for k, organ in enumerate(view.organs):
        volumes, extents, empty = [], [], 0
        for case in view.cases:
            if view.states[case][k] is not State.ANNOTATED:
                continue
            shown = np.flatnonzero(view.counts[case][:, k])
            if not len(shown):
                empty += 1
                continue
            volumes.append(float(view.counts[case][:, k].sum()) * voxel_ml(view.store.cases[case]))
            extents.append(float(shown[-1] - shown[0] + 1) * view.spacing(case)[0])
        if not volumes:
            ranges[organ] = OrganRange(0, empty)
            continue
        mean, std = float(np.mean(volumes)), float(np.std(volumes))
        ranges[organ] = OrganRange(len(volumes), empty, min(volumes), max(volumes), mean, std, max(extents))
    return ranges
