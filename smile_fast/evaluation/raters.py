"""Label maps by several raters: how well the prediction agrees with each, beside how well they agree with each other.

The first rater is the store's own labels. All means run over the same pairs: those where every rater has drawn the
organ.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.label_folder import LabelMap, label_files
from smile_fast.evaluation.summary import Spread, mean, spread
from smile_fast.supervision import State
from smile_fast.supervision.overlap import joint_histogram, organ_dice
from smile_runtime.errors import InputError
from smile_runtime.label_map import VOID

OWN_LABELS = "labels of the store"


@dataclass(frozen=True)
class RaterPair:
    """One organ of one case that every rater has drawn.

    Attributes:
        prediction: Dice of the prediction to each rater.
        between: Dice of each two raters, in the order of `itertools.combinations`.
    """

    case: str
    organ: str
    prediction: tuple[float, ...]
    between: tuple[float, ...]


@dataclass(frozen=True)
class RaterRow:
    """One organ's row.

    Attributes:
        pairs: how many the row runs over. left_out: drawn pairs that some rater has left empty.
        prediction: mean Dice of the prediction to each rater.
        mean: over raters.
        between: Dice over each two raters and all pairs.
        lowest: mean Dice of the two raters who agree least.
    """

    organ: str
    pairs: int
    left_out: int
    prediction: tuple[float | None, ...]
    mean: float | None
    between: Spread
    lowest: float | None


@dataclass(frozen=True)
class RaterScores:
    """Agreement with raters; `names` are `OWN_LABELS` and the folders."""

    names: tuple[str, ...]
    organs: tuple[RaterRow, ...]
    pairs: tuple[RaterPair, ...]

    def __post_init__(self) -> None:
        """Refuse, as `ValueError`, rows of another number of raters."""
        if any(len(row.prediction) != len(self.names) for row in self.organs):
            raise ValueError("other raters")


def rater_files(cases: Sequence[str], folders: Sequence[Path]) -> list[dict[str, Path]]:
    """Where the label map of each case is, one mapping a rater.

    Raises:
        InputError: a folder is given twice, cannot be read, or lacks a case.
    """
    found: list[dict[str, Path]] = []
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise InputError(f"{folder}: given twice to --raters; name every folder once")
        files = label_files(cases, folder)
        for case, file in files.items():
            if not file.is_file():
                raise InputError(f"{file}: there is no such file, the rater lacks case {case}; add its label map")
        found.append(files)
    return found


def score_raters(
    case: str,
    labels: NDArray[np.uint8],  # [D, H, W]
    prediction: NDArray[np.uint8],  # [D, H, W]
    others: Sequence[LabelMap],
    states: Mapping[str, State],
    organs: Sequence[str],
) -> list[RaterPair]:
    """Compare a prediction with raters, and them with each other, on one case.

    Args:
        case: its name, for the result.
        labels: [D, H, W] uint8, the store's. Voxels that any rater calls void count for nobody.
        prediction: [D, H, W] uint8.
        others: give the label maps of the others.
        states: declared state of every organ; a missing one has no truth, whatever raters say.
        organs: [K] names; organ k has label value k + 1.

    Returns:
        One an organ that every rater has drawn.

    Raises:
        InputError: a label map cannot be used.
    """
    if not others:
        return []
    raters = [labels, *(other() for other in others)]
    void = np.logical_or.reduce([rater == VOID for rater in raters])
    raters = [np.where(void, 0, rater).astype(np.uint8) for rater in raters]
    prediction = np.where(void, 0, prediction).astype(np.uint8)
    to_each = [joint_histogram(rater, prediction) for rater in raters]
    between = [joint_histogram(one, other) for one, other in combinations(raters, 2)]
    found = []
    for value, organ in enumerate(organs, start=1):
        if states[organ] == State.MISSING or not all(joint[value].any() for joint in to_each):
            continue
        dice = [[organ_dice(joint, value) or 0.0 for joint in joints] for joints in (to_each, between)]
        found.append(RaterPair(case, organ, tuple(dice[0]), tuple(dice[1])))
    return found


def summarise_raters(
    pairs: Iterable[RaterPair], organs: Sequence[str], folders: Sequence[str], drawn: Mapping[str, int]
) -> RaterScores:
    """One row an organ.

    Args:
        pairs: of all cases.
        organs: [K] names.
        folders: of the raters beside the store's labels.
        drawn: organ -> pairs whose truth in the store holds the organ.
    """
    pairs, names = tuple(pairs), (OWN_LABELS, *folders)
    rows = []
    for organ in organs:
        own = [pair for pair in pairs if pair.organ == organ]
        prediction = tuple(mean(pair.prediction[k] for pair in own) for k in range(len(names)))
        between = spread(value for pair in own for value in pair.between)
        of_two = [mean(values) for values in zip(*(pair.between for pair in own), strict=True)]
        lowest = min((value for value in of_two if value is not None), default=None)
        left_out = drawn[organ] - len(own)
        rows.append(RaterRow(organ, len(own), left_out, prediction, mean(prediction), between, lowest))
    return RaterScores(names, tuple(rows), pairs)
