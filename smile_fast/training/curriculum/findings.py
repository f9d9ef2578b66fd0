"""What relabelling rounds found, by case and organ, and how right that is where the truth is hidden."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from smile_fast.data.annotations import Declarations
from smile_fast.data.store import Store
from smile_fast.supervision import State
from smile_fast.training.curriculum.ranges import voxel_ml
from smile_fast.training.rounds import StoredRound
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BACKGROUND, PSEUDO_BIT
from smile_runtime.progress import progress


@dataclass(frozen=True)
class PairRow:
    """One round's findings of one organ in one case, in voxels.

    Attributes:
        number, case, organ: which round and pair.
        voxel_ml: volume of a voxel of the case, ml.
        candidates, selected, kept: see `COUNTED`.
        before: candidates of the round before; None if there is none.
        checked, correct, hidden: pseudo-labels of an organ whose truth is drawn but hidden, those of them that the
            truth confirms, and the voxels of that truth; 0 where there is none, or nobody may look.
        confidence: mean probability of the pseudo-labels; None without any, and of rounds that do not say.
        second_piece: voxels of the second largest connected piece of the pseudo-labels, a share of the largest's.
    """

    number: int
    case: str
    organ: str
    voxel_ml: float
    candidates: int
    selected: int
    kept: int
    before: int | None
    checked: int
    correct: int
    hidden: int
    second_piece: float
    confidence: float | None = None

    @property
    def candidates_ml(self) -> float:
        """Volume of the candidates: what the network takes for the organ where no human drew."""
        return self.candidates * self.voxel_ml

    @property
    def before_ml(self) -> float | None:
        """Volume of the candidates of the round before."""
        return None if self.before is None else self.before * self.voxel_ml


@dataclass(frozen=True)
class RoundRow:
    """One organ's line in the table of a relabelling round, in voxels summed over the training cases.

    `checked` are the pseudo-labels of pairs whose truth is drawn but hidden, `correct` those of them that the truth
    confirms, `hidden` the voxels of that truth. `volumes_ml` are those of the candidates, a case each; `background`
    are the voxels of all its cases that the round takes for none of the organs that nobody drew.
    """

    number: int
    gamma: float
    organ: str
    cases: int
    candidates: int
    selected: int
    kept: int
    checked: int
    correct: int
    hidden: int
    volumes_ml: tuple[float, ...]
    background: int

    @property
    def precision(self) -> float | None:
        """Share of the checked pseudo-labels that are right."""
        return self.correct / self.checked if self.checked else None

    @property
    def recall(self) -> float | None:
        """Share of the hidden truth that the round found."""
        return self.correct / self.hidden if self.hidden else None

    @property
    def median_ml(self) -> float:
        """Median volume of the candidates of a case, ml."""
        return float(np.median(self.volumes_ml))


def read_pairs(
    store: Store,
    states: Declarations,
    stored: StoredRound,
    before: StoredRound | None,
    *,
    look_at_hidden: bool,
) -> tuple[list[PairRow], dict[str, int]]:
    """Read the overlays of a round, one case after the other.

    Args:
        store: the cohort.
        states: the run's declarations.
        stored: the round.
        before: the one before it, if there is one.
        look_at_hidden: compare with truth that is drawn but hidden from training.

    Returns:
        Every (case, organ) pair of the round, and by case the voxels of pseudo-background.

    Raises:
        InputError: an overlay cannot be read, or the round names a case that the store has not.
    """
    if unknown := set(stored.cases) - set(states):
        raise InputError(
            f"{stored.path}: names {min(unknown)}, which is no case of {store.path}; restore the file from a copy"
        )
    rows: list[PairRow] = []
    background: dict[str, int] = {}
    for case in progress(stored.cases, total=len(stored.cases), label=f"check round {stored.round.number}"):
        if not stored.cases[case]:
            continue
        overlay = stored.pseudo_labels(case)
        background[case] = int(np.count_nonzero(overlay == PSEUDO_BACKGROUND))
        rows += _case_rows(store, states[case], case, overlay, stored, before, look_at_hidden)
    return rows, background


def round_rows(
    stored: StoredRound, pairs: Sequence[PairRow], background: Mapping[str, int], organs: Sequence[str]
) -> Iterator[RoundRow]:
    """Sum the pairs of a round by organ."""
    for organ in organs:
        own = [pair for pair in pairs if pair.organ == organ]
        if own:
            yield RoundRow(
                number=stored.round.number,
                gamma=stored.round.gamma,
                organ=organ,
                cases=len(own),
                candidates=sum(pair.candidates for pair in own),
                selected=sum(pair.selected for pair in own),
                kept=sum(pair.kept for pair in own),
                checked=sum(pair.checked for pair in own),
                correct=sum(pair.correct for pair in own),
                hidden=sum(pair.hidden for pair in own),
                volumes_ml=tuple(pair.candidates_ml for pair in own),
                background=sum(background[pair.case] for pair in own),
            )


def _case_rows(
    store: Store,
    states: Mapping[str, State],
    case: str,
    overlay: NDArray[np.uint8],  # [D, H, W]
    stored: StoredRound,
    before: StoredRound | None,
    look_at_hidden: bool,
) -> Iterator[PairRow]:
    organs, earlier = stored.cases[case], before.cases.get(case, {}) if before else {}
    hidden = {organ for organ in organs if look_at_hidden and states[organ] is State.HIDDEN}
    truth = store.read_labels(case) if hidden else None
    size = voxel_ml(store.cases[case])
    for value, organ in enumerate(store.organs, start=1):
        if organ not in organs:
            continue
        pseudo = overlay == (PSEUDO_BIT | value)
        checked = correct = drawn = 0
        if truth is not None and organ in hidden:
            there = truth == value
            checked, correct, drawn = (int(np.count_nonzero(mask)) for mask in (pseudo, pseudo & there, there))
        yield PairRow(
            number=stored.round.number,
            case=case,
            organ=organ,
            voxel_ml=size,
            candidates=organs[organ]["candidates"],
            selected=organs[organ]["selected"],
            kept=organs[organ]["kept"],
            before=earlier[organ]["candidates"] if organ in earlier else None,
            checked=checked,
            correct=correct,
            hidden=drawn,
            second_piece=_second_piece(pseudo),
            confidence=stored.confidences.get(case, {}).get(organ),
        )


def _second_piece(mask: NDArray[np.bool_]) -> float:
    """Voxels of the second largest piece (connected by faces) of a mask [D, H, W], a share of the largest's."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return 0.0
    labels, found = ndimage.label(mask[boxes[0]])
    if found < 2:
        return 0.0
    second, largest = np.sort(np.bincount(labels.ravel())[1:])[-2:]
    return float(second / largest)
