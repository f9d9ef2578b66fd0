"""Scores of pairs to rows: which pairs a number runs over is decided here, once, for every method and table.

Mean Dice, NSD and HD95 run over the pairs whose truth holds the organ. Where a complete truth does not hold it, what
is predicted is a false alarm: those are a rate. Pooled Dice and the ratio of volumes run over both kinds, all pairs
with a complete truth: a false alarm makes them worse, a right empty prediction adds nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from smile_fast.evaluation.scores import WITH_ORGAN, WITHOUT_ORGAN, Outcome, PairScore


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over pairs; std is 0 for one pair, both are None for none."""

    mean: float | None
    std: float | None
    pairs: int

    def __post_init__(self) -> None:
        """Refuse, as `ValueError`, one of them without the other."""
        if (self.mean is None) != (self.std is None):
            raise ValueError("a mean without a standard deviation")


@dataclass(frozen=True)
class FalseAlarms:
    """Predictions of an organ that is not there.

    Attributes:
        pairs: how many. of: pairs whose truth is complete and does not hold the organ.
        median_ml: volume of such a prediction; None where there is none.
    """

    pairs: int
    of: int
    median_ml: float | None

    @property
    def rate(self) -> float | None:
        """Their share; None where every pair holds the organ."""
        return self.pairs / self.of if self.of else None


@dataclass(frozen=True)
class OrganScore:
    """One organ's row of the table.

    Attributes:
        dice, nsd, hd95_mm: over the pairs whose truth holds the organ.
        outcomes: counts its pairs by outcome.
        pooled_dice: 2 sum |P and T| / sum (|P| + |T|) in ml, over all pairs with a complete truth; None of no volume.
        volume_ratio: sum |P| / sum |T| in ml, over the same pairs; None where the truth holds nothing.
        median_volume_ratio: |P| / |T| of the median case that holds the organ.
        false_alarms: predictions where it is not.
    """

    organ: str
    dice: Spread
    nsd: Spread
    hd95_mm: Spread
    outcomes: dict[str, int]
    pooled_dice: float | None
    volume_ratio: float | None
    median_volume_ratio: float | None
    false_alarms: FalseAlarms

    def __post_init__(self) -> None:
        """Refuse, as `ValueError`, counts of other outcomes than there are."""
        if self.outcomes.keys() != {outcome.value for outcome in Outcome}:
            raise ValueError("other outcomes")


@dataclass(frozen=True)
class SourceScore:
    """The scores of the cases of one source; `dice`, `nsd` and `hd95_mm` average the organs' means."""

    source: str
    cases: int
    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    organs: tuple[OrganScore, ...]


def organ_score(organ: str, pairs: Iterable[PairScore]) -> OrganScore:
    """One organ's row, of pairs of any organs."""
    own = [pair for pair in pairs if pair.organ == organ]
    there = [pair for pair in own if pair.outcome in WITH_ORGAN]
    elsewhere = [pair for pair in own if pair.outcome in WITHOUT_ORGAN]
    alarms = [pair.predicted_ml for pair in elsewhere if pair.outcome is Outcome.FALSE_ALARM]
    truth = sum(pair.truth_ml for pair in there)
    predicted = sum(pair.predicted_ml for pair in there) + sum(alarms)
    # Dice is 2 |P and T| / (|P| + |T|) of the pair: what both share is left over when it is multiplied out.
    shared = sum((pair.dice or 0.0) * (pair.truth_ml + pair.predicted_ml) for pair in there)
    ratios = [pair.predicted_ml / pair.truth_ml for pair in there if pair.truth_ml]
    return OrganScore(
        organ=organ,
        dice=spread(pair.dice for pair in there),
        nsd=spread(pair.nsd for pair in there),
        hd95_mm=spread(pair.hd95_mm for pair in there),
        outcomes={outcome.value: sum(pair.outcome is outcome for pair in own) for outcome in Outcome},
        pooled_dice=shared / (truth + predicted) if truth + predicted else None,
        volume_ratio=predicted / truth if truth else None,
        median_volume_ratio=float(np.median(ratios)) if ratios else None,
        false_alarms=FalseAlarms(len(alarms), len(elsewhere), float(np.median(alarms)) if alarms else None),
    )


def source_scores(pairs: Sequence[PairScore], organs: Sequence[str]) -> tuple[SourceScore, ...]:
    """The rows of each source, in the order of their names; none where no case says where it comes from."""
    names = sorted({pair.source for pair in pairs})
    if names in ([], [""]):
        return ()
    found = []
    for name in names:
        own = [pair for pair in pairs if pair.source == name]
        rows = tuple(organ_score(organ, own) for organ in organs)
        cases = len({pair.case for pair in own})
        found.append(SourceScore(name, cases, *organ_means(rows), rows))
    return tuple(found)


def organ_means(rows: Iterable[OrganScore]) -> tuple[float | None, float | None, float | None]:
    """Dice, NSD and HD95 as means of the organs' means: a frequent organ weighs no more than a rare one."""
    rows = list(rows)
    return (
        mean(row.dice.mean for row in rows),
        mean(row.nsd.mean for row in rows),
        mean(row.hd95_mm.mean for row in rows),
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that there are."""
    return spread(values).mean


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and standard deviation of those that there are."""
    known = [value for value in values if value is not None]
    if not known:
        return Spread(None, None, 0)
    return Spread(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0, len(known))
