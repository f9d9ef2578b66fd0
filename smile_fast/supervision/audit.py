"""The label audit: what a training that takes "missing" for "background" would learn wrong, organ by organ.

After table 1 of Petit et al., "Handling Missing Annotations for Semantic Segmentation with Deep ConvNets", DLMIA 2018.
For organ k, over the audited cases i with N_i voxels that are not void, of which n_ik belong to the organ:

    alpha_k    = cases in which k is missing or hidden / cases in which k is not absent
    beta_k     = mean of n_ik / N_i over the cases in which k was drawn (annotated or hidden)
    baseline   (missing = background; each voxel carries a label of k)
        TP     = drawn voxels of k that training sees
        FN     = voxels of k labelled background: counted where k is hidden;
                 where it is missing, max(0, beta_k N_i - drawn) is expected
        TN     = all the others; FP = 0, drawn voxels are taken to be right
    SMILE      (a voxel carries a label of k only where it is certain)
        TP     = the same, FN = 0, FP = 0
        TN     = every other voxel where k is annotated or absent, and the drawn voxels of other organs elsewhere
        ambiguous = the rest, which is ignored
    epsilon_k  = drawn voxels of other organs in the cases where k is missing or hidden / all voxels:
                 the certain negatives that SMILE keeps there

Alpha counts cases; where these differ in size, the same share of slices and of voxels says more: those that lie in
cases in which k is missing or hidden, of those in all cases in which k is not absent.

An organ counts as drawn in part in a case that is declared missing but shows it, and in one where it should be drawn
wherever it exists (annotated or hidden), but slices without it lie between slices with it. Slices that are void from
edge to edge are no such gap: nothing is learned there.

With cases of one size, as shares of all voxels: TP = (1 - alpha) beta, FN = alpha beta, and SMILE's TN is
(1 - alpha)(1 - beta) + epsilon. So the baseline's TP : FN is (1 - alpha) : alpha, and beyond alpha = 0.5 it sees more
wrong labels of the organ than right ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.label_map import VOID
from smile_runtime.volume.histograms import slice_histograms


@dataclass(frozen=True)
class CaseCounts:
    """The voxels of one case, hidden organs included.

    Attributes:
        voxels: all voxels.
        void: voxels on which nothing is supervised.
        organs: [K] drawn voxels of each organ.
        slices: all axial slices.
        drawn: [K] slices that show each organ.
        gaps: [K] slices between the first and the last of those that do not show it, though they are not all void.
    """

    voxels: int
    void: int
    organs: tuple[int, ...]
    slices: int
    drawn: tuple[int, ...]
    gaps: tuple[int, ...]

    @property
    def usable(self) -> int:
        """Voxels that are not void."""
        return self.voxels - self.void

    @classmethod
    def of(
        cls,
        histograms: NDArray[np.int64],  # [D, 256]
        organs: int,
        ignore: int | None = None,
    ) -> "CaseCounts":
        """Count a case by the histograms of its axial slices.

        Args:
            histograms: [D, 256] voxels of each label value in each slice.
            organs: K.
            ignore: a value that stands for void beside 255.
        """
        voxels, void = histograms.sum(axis=1), histograms[:, VOID].copy()  # [D]
        if ignore is not None:
            void += histograms[:, ignore]
        shown = histograms[:, 1 : organs + 1] > 0  # [D, K]
        inside = np.logical_or.accumulate(shown) & np.logical_or.accumulate(shown[::-1])[::-1]
        gaps = inside & ~shown & (void < voxels)[:, None]
        return cls(
            voxels=int(voxels.sum()),
            void=int(void.sum()),
            organs=tuple(histograms[:, 1 : organs + 1].sum(axis=0).tolist()),
            slices=len(histograms),
            drawn=tuple(shown.sum(axis=0).tolist()),
            gaps=tuple(gaps.sum(axis=0).tolist()),
        )


@dataclass(frozen=True)
class LabelCounts:
    """The labels of one organ that a training would use, in voxels.

    Attributes:
        tp: organ voxels labelled as the organ.
        fn: organ voxels labelled as something else: wrong labels.
        tn: other voxels labelled as not the organ.
        fp: other voxels labelled as the organ.
        ambiguous: voxels without label.
        tp_fn: tp / fn, None when fn is 0 (no wrong label) or unknown.
    """

    tp: int
    fn: int | None
    tn: int | None
    fp: int
    ambiguous: int
    tp_fn: float | None


@dataclass(frozen=True)
class OrganAudit:
    """The audit of one organ; see the module for the formulas.

    Attributes:
        organ: its name.
        annotated: number of cases in this state; likewise `missing`, `hidden` and `absent`.
        alpha: share of missing annotations, None when the organ is absent everywhere.
        alpha_slices: share of the slices that lie in cases whose annotation is missing, likewise.
        alpha_voxels: the same share of the voxels that are not void.
        empty: number of cases in which it is annotated, but has no voxel.
        partial: number of cases in which it is missing and yet drawn in part.
        gapped: cases in which it is annotated or hidden, but its drawn slices have gaps.
        gapped_drawn: slices that show it in those cases. gapped_empty: slices between them that do not.
        beta: share of voxels that the organ occupies, None when it was drawn nowhere.
        epsilon: share of voxels that are certain negatives although the organ's annotation is missing.
        wrong_share: FN / (TP + FN) of the baseline, None when unknown.
        basis: measured (every missing annotation is a hidden one) or estimated (from alpha and beta).
        baseline: labels of a training that takes missing for background; fn and tn are None when beta is.
        smile: labels of SMILE.
    """

    organ: str
    annotated: int
    missing: int
    hidden: int
    absent: int
    alpha: float | None
    alpha_slices: float | None
    alpha_voxels: float | None
    empty: int
    partial: int
    gapped: tuple[str, ...]
    gapped_drawn: int
    gapped_empty: int
    beta: float | None
    epsilon: float
    wrong_share: float | None
    basis: Literal["measured", "estimated"]
    baseline: LabelCounts
    smile: LabelCounts


@dataclass(frozen=True)
class Audit:
    """The label audit of a cohort.

    Attributes:
        cases: the audited cases.
        voxels: their voxels that are not void.
        organs: one row an organ.
        empty: organ -> cases in which it is declared annotated but has no voxel; organs with such a case only.
    """

    cases: tuple[str, ...]
    voxels: int
    organs: tuple[OrganAudit, ...]
    empty: dict[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        """Plain data; counts in voxels, unknown values None."""
        return {
            "cases": list(self.cases),
            "voxels": self.voxels,
            "organs": [asdict(row) for row in self.organs],
        }


class LabelSource(Protocol):
    """What `audit_store` needs of a store."""

    @property
    def organs(self) -> tuple[str, ...]:
        """[K] names."""

    def read_labels(self, name: str) -> NDArray[np.uint8]:
        """Human label map of a case, [D, H, W]."""


def audit(
    counts: Mapping[str, CaseCounts], declarations: Mapping[str, Mapping[str, State]], organs: Sequence[str]
) -> Audit:
    """Audit the labels of some cases.

    Args:
        counts: the cases to audit and their voxels.
        declarations: the state of every (case, organ) pair of those cases.
        organs: [K] names, in the order of `CaseCounts.organs`.

    Raises:
        InputError: there is no case, or an organ with voxels is declared absent.
    """
    if not counts:
        raise InputError("--split: there is no case to audit; choose another split")
    for case, count in counts.items():
        for organ, voxels in zip(organs, count.organs, strict=True):
            if voxels and declarations[case][organ] is State.ABSENT:
                raise InputError(
                    f"case {case}: {voxels} voxels of {organ}, which is declared absent; correct annotations.csv or "
                    "the label map"
                )
    states = {case: [declarations[case][organ] for organ in organs] for case in counts}
    voxels = sum(count.usable for count in counts.values())
    rows = tuple(_audit_organ(k, organ, counts, states, voxels) for k, organ in enumerate(organs))
    empty = {
        organ: [case for case in counts if states[case][k] is State.ANNOTATED and not counts[case].organs[k]]
        for k, organ in enumerate(organs)
    }
    empty = {organ: cases for organ, cases in empty.items() if cases}
    return Audit(cases=tuple(counts), voxels=voxels, organs=rows, empty=empty)


def audit_store(
    store: LabelSource, declarations: Mapping[str, Mapping[str, State]], cases: Iterable[str] | None = None
) -> Audit:
    """Audit the labels of a store's cases.

    Args:
        store: an open store.
        declarations: the state of every (case, organ) pair.
        cases: the cases to audit; by default those of `declarations`.

    Raises:
        InputError: see `audit`; or a label map of the store cannot be read.
    """
    counts = {}
    for case in declarations if cases is None else cases:
        counts[case] = CaseCounts.of(slice_histograms(store.read_labels(case)), len(store.organs))
    return audit(counts, declarations, store.organs)


def _audit_organ(
    k: int, organ: str, counts: Mapping[str, CaseCounts], states: Mapping[str, list[State]], voxels: int
) -> OrganAudit:
    """One row of the table."""
    number = {state: sum(states[case][k] is state for case in counts) for state in State}
    shares = [
        count.organs[k] / max(count.usable, 1)
        for case, count in counts.items()
        if states[case][k] in (State.ANNOTATED, State.HIDDEN)
    ]
    beta = fmean(shares) if shares else None
    unknown = [case for case in counts if states[case][k] in (State.MISSING, State.HIDDEN)]
    present = [case for case in counts if states[case][k] is not State.ABSENT]
    gapped = [
        case for case in counts if states[case][k] in (State.ANNOTATED, State.HIDDEN) and counts[case].gaps[k] > 0
    ]

    seen = wrong = negatives = recovered = 0
    for case, count in counts.items():
        state, usable = states[case][k], count.usable
        drawn = count.organs[k]
        if state is State.HIDDEN:
            wrong += drawn
        else:
            seen += drawn
        if state is State.MISSING:
            wrong += max(0, round((beta or 0.0) * usable) - drawn)
        if state in (State.ANNOTATED, State.ABSENT):
            negatives += usable - drawn
        else:
            recovered += sum(
                other for j, other in enumerate(count.organs) if j != k and states[case][j] is not State.HIDDEN
            )
    estimated = number[State.MISSING] > 0
    known = beta is not None or not estimated
    tn = negatives + recovered
    baseline = LabelCounts(
        tp=seen,
        fn=wrong if known else None,
        tn=voxels - seen - wrong if known else None,
        fp=0,
        ambiguous=0,
        tp_fn=seen / wrong if known and wrong else None,
    )
    smile = LabelCounts(tp=seen, fn=0, tn=tn, fp=0, ambiguous=voxels - seen - tn, tp_fn=None)
    return OrganAudit(
        organ=organ,
        annotated=number[State.ANNOTATED],
        missing=number[State.MISSING],
        hidden=number[State.HIDDEN],
        absent=number[State.ABSENT],
        alpha=_share(len(unknown), len(present)),
        alpha_slices=_share(sum(counts[case].slices for case in unknown), sum(counts[case].slices for case in present)),
        alpha_voxels=_share(sum(counts[case].usable for case in unknown), sum(counts[case].usable for case in present)),
        empty=sum(states[case][k] is State.ANNOTATED and not count.organs[k] for case, count in counts.items()),
        partial=sum(states[case][k] is State.MISSING and count.organs[k] > 0 for case, count in counts.items()),
        gapped=tuple(gapped),
        gapped_drawn=sum(counts[case].drawn[k] for case in gapped),
        gapped_empty=sum(counts[case].gaps[k] for case in gapped),
        beta=beta,
        epsilon=recovered / max(voxels, 1),
        wrong_share=wrong / (seen + wrong) if known and seen + wrong else None,
        basis="estimated" if estimated else "measured",
        baseline=baseline,
        smile=smile,
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
