"""What remains of an organ's candidates in a case: one component, few enough slices, a plausible volume."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from smile_fast.ops import select_top_fraction

_ROUNDING = 1e-6  # of a slice or a voxel: a limit that is a whole number of them allows all of them


@dataclass(frozen=True)
class Limits:
    """The limits of one organ in one case.

    Attributes:
        one_component: keep the component with the largest sum of scores, neighbours over faces, edges and corners.
        slices: how many slices, from the first to the last; None for any.
        voxels: how many voxels; None for any.
    """

    one_component: bool = False
    slices: int | None = None
    voxels: int | None = None

    @classmethod
    def of(cls, one_component: bool, mm: float | None, ml: float | None, slice_mm: float, voxel_ml: float) -> "Limits":
        """The limits in slices and voxels of a case; at least one of each, so that no limit is a ban."""
        slices = None if mm is None else max(1, int(mm / slice_mm + _ROUNDING))
        return cls(one_component, slices, None if ml is None else whole_voxels(ml, voxel_ml))


def whole_voxels(ml: float, voxel_ml: float) -> int:
    """How many voxels a volume has room for, at least one."""
    return max(1, int(ml / voxel_ml + _ROUNDING))


def limited(
    candidates: Tensor,  # [D, H, W]
    scores: Tensor,  # [D, H, W]
    positions: NDArray[np.int64],  # [D]
    limits: Limits,
) -> Tensor:
    """Return the candidates [D, H, W] bool that the limits leave: component first, then slices, then volume.

    Args:
        candidates: bool.
        scores: float32 or float64, positive where there is a candidate.
        positions: where the slices lie in their volume, ascending: some may have been left out.
        limits: of the organ.
    """
    if limits.one_component:
        candidates = _one_component(candidates, scores, positions)
    if limits.slices is not None:
        candidates = _within_slices(candidates, scores, positions, limits.slices)
    if limits.voxels is not None:
        candidates = _most_confident(candidates, scores, limits.voxels)
    return candidates


def _one_component(candidates: Tensor, scores: Tensor, positions: NDArray[np.int64]) -> Tensor:
    # Slices that were left out separate: what lies before them does not touch what lies after them.
    place = positions - positions[0]
    volume = np.zeros((int(place[-1]) + 1, *candidates.shape[1:]), bool)
    volume[place] = candidates.cpu().numpy()
    components, number = ndimage.label(volume, np.ones((3, 3, 3), bool))
    if number < 2:
        return candidates
    components = components[place]
    evidence = np.bincount(components.ravel(), weights=scores.cpu().numpy().ravel())
    evidence[0] = -np.inf  # no candidate
    return torch.from_numpy(components == evidence.argmax()).to(candidates.device)


def _within_slices(candidates: Tensor, scores: Tensor, positions: NDArray[np.int64], most: int) -> Tensor:
    """Keep the `most` successive slices with the largest sum of scores; the first of equal ones."""
    here = torch.where(candidates, scores, 0).sum(dim=(1, 2), dtype=torch.float64).cpu().numpy()
    place = positions - positions[0]
    evidence = np.zeros(max(int(place[-1]) + 1, most))
    evidence[place] = here
    sums = np.concatenate([[0.0], np.cumsum(evidence)])
    first = int(np.argmax(sums[most:] - sums[:-most]))
    inside = torch.from_numpy((place >= first) & (place < first + most)).to(candidates.device)
    return candidates & inside[:, None, None]


def _most_confident(candidates: Tensor, scores: Tensor, most: int) -> Tensor:
    found = int(candidates.sum())
    if found <= most:
        return candidates
    segments = torch.tensor([0, candidates.numel()], device=candidates.device)
    return select_top_fraction(scores.flatten(), candidates.flatten(), most / found, segments).view(candidates.shape)
