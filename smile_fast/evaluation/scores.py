"""Dice, NSD and HD95 of one case. Needs numpy, scipy and surface-distance; knows neither runs nor stores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from smile_fast.evaluation.surfaces import surface_scores
from smile_fast.supervision import State
from smile_fast.supervision.overlap import joint_histogram, organ_dice
from smile_runtime.errors import InputError
from smile_runtime.label_map import VOID

NSD_TOLERANCE_MM = 3.0  # TotalSegmentator's; two voxels of its 1.5 mm grid


class Outcome(StrEnum):
    """What became of one (case, organ) pair."""

    SCORED = "scored"
    """Truth and prediction both hold voxels."""
    MISSED = "missed"
    """Truth holds voxels, the prediction none: Dice 0, NSD 0, HD95 the diagonal of the volume."""
    FALSE_ALARM = "false alarm"
    """The prediction holds voxels, truth none: there is no overlap to measure, hence counted, and not scored."""
    BOTH_EMPTY = "both empty"
    """Neither holds voxels: right, but there is no overlap to measure, hence not scored."""
    NOT_DRAWN = "not drawn"
    """Declared missing: there is no truth."""
    PARTLY_DRAWN = "partly drawn"
    """Declared missing with some voxels drawn: the truth is incomplete, hence not scored."""


WITH_ORGAN = (Outcome.SCORED, Outcome.MISSED)
"""Pairs whose truth holds the organ. Dice, NSD and HD95 are of these alone, so that all methods have the same ones."""
WITHOUT_ORGAN = (Outcome.FALSE_ALARM, Outcome.BOTH_EMPTY)
"""Pairs whose truth is complete and does not hold it. The share of false alarms among them is a rate of its own."""


@dataclass(frozen=True)
class PairScore:
    """The scores of one (case, organ) pair; None where a score does not exist.

    Attributes:
        truth_ml, predicted_ml: volumes without void voxels.
        dice, nsd, hd95_mm: of the pairs `WITH_ORGAN`.
        source: the dataset that the case comes from; "" where nothing says it.
    """

    case: str
    organ: str
    state: State
    outcome: Outcome
    truth_ml: float
    predicted_ml: float
    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    source: str = ""


def score_case(
    case: str,
    truth: NDArray[np.uint8],  # [D, H, W]
    prediction: NDArray[np.uint8],  # [D, H, W]
    states: Mapping[str, State],
    organs: Sequence[str],
    spacing: tuple[float, float, float],
    *,
    nsd_tolerance_mm: float | None = NSD_TOLERANCE_MM,
    directions: NDArray[np.float64] | None = None,  # [3, 3]
    source: str = "",
) -> list[PairScore]:
    """Score every organ of one case.

    Args:
        case: its name, for the result.
        truth: [D, H, W] uint8 human labels; voxels with 255 (void) count for neither side.
        prediction: [D, H, W] uint8 label map, values 0..K.
        states: declared state of every organ.
        organs: [K] names; organ k has label value k + 1.
        spacing: (z, y, x) mm.
        nsd_tolerance_mm: distance in mm up to which two surfaces agree; None leaves NSD and HD95 out.
        directions: [3, 3] unit columns, where the axes z, y, x of the arrays point to; None for axes at right angles.
        source: the dataset that the case comes from, for the result.

    Returns:
        [K] scores in the order of `organs`.

    Raises:
        InputError: the two arrays differ in shape.

    Source: NSD, Nikolov et al. 2018, arXiv:1809.04430; HD95 as the larger of both directions' percentiles. A
    missed organ has the volume's diagonal as its HD95, as in BraTS (373 mm there): left out, it would improve the mean.
    """
    if truth.shape != prediction.shape:
        raise InputError(
            f"case {case}: the prediction has shape {prediction.shape}, the label map {truth.shape} "
            "(slices, rows, columns); predict the volume that was prepared"
        )
    joint = joint_histogram(truth, prediction)
    joint[VOID] = 0
    boxes = _bounding_boxes(truth, prediction, len(organs)) if nsd_tolerance_mm is not None else None
    steps = np.diag(spacing) if directions is None else directions * np.array(spacing)  # [3, 3] mm
    millilitres = abs(float(np.linalg.det(steps))) / 1000.0

    scores = []
    for index, organ in enumerate(organs):
        value = index + 1
        in_truth, in_prediction = int(joint[value].sum()), int(joint[:, value].sum())
        outcome = _outcome(states[organ], in_truth, in_prediction)
        dice = nsd = hd95 = None
        if outcome in WITH_ORGAN:
            dice = organ_dice(joint, value)
        if outcome is Outcome.MISSED and nsd_tolerance_mm is not None:
            nsd, hd95 = 0.0, diagonal_mm(truth.shape, steps)
        if outcome is Outcome.SCORED and nsd_tolerance_mm is not None and boxes is not None:
            box = boxes[index]
            known = truth[box] != VOID
            nsd, hd95 = surface_scores(truth[box] == value, (prediction[box] == value) & known, steps, nsd_tolerance_mm)
        scores.append(
            PairScore(
                case=case,
                organ=organ,
                state=State(states[organ]),
                outcome=outcome,
                truth_ml=in_truth * millilitres,
                predicted_ml=in_prediction * millilitres,
                dice=dice,
                nsd=nsd,
                hd95_mm=hd95,
                source=source,
            )
        )
    return scores


def diagonal_mm(shape: Sequence[int], steps: NDArray[np.float64]) -> float:
    """The longest diagonal of a volume, which no distance in it exceeds.

    Args:
        shape: (D, H, W) voxels.
        steps: [3, 3] mm; column k is one step along axis k.
    """
    edges = steps * np.array(shape)  # [3, 3] mm
    return max(float(np.linalg.norm(edges @ (1, sign, other))) for sign in (1, -1) for other in (1, -1))


def _outcome(state: State, in_truth: int, in_prediction: int) -> Outcome:
    if state == State.MISSING:
        return Outcome.PARTLY_DRAWN if in_truth else Outcome.NOT_DRAWN
    if in_truth:
        return Outcome.SCORED if in_prediction else Outcome.MISSED
    return Outcome.FALSE_ALARM if in_prediction else Outcome.BOTH_EMPTY


def _bounding_boxes(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], organs: int) -> list[tuple[slice, ...]]:
    """Return the joint box of truth and prediction per organ, found in one pass over each array."""
    from scipy import ndimage

    boxes = []
    found = [ndimage.find_objects(array, max_label=organs) for array in (truth, prediction)]
    for pair in zip(*found, strict=True):
        present = [box for box in pair if box is not None]
        boxes.append(
            tuple(
                slice(min(box[axis].start for box in present), max(box[axis].stop for box in present))
                for axis in range(truth.ndim if present else 0)
            )
        )
    return boxes
