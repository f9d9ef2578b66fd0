"""What the scores of a sweep say: means over folds, intervals over cases, and tests between methods."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from smile_fast.evaluation.compared import case_means
from smile_fast.evaluation.comparison import paired_difference
from smile_fast.sweep.cell import CellRecord
from smile_fast.sweep.pairs import MEAN, Pair, dice_of_pairs, false_alarms

_DRAWS = 2000
_SEED = 0


@dataclass(frozen=True)
class Row:
    """One method's Dice of an organ at a share of missing annotations.

    Attributes:
        organ: its name, or `MEAN` for the mean of the organs' means.
        mean, std: over the folds' means; std is the sample standard deviation, 0 for one fold.
        low, high: 95% bootstrap interval of the mean, cases drawn with all of their organs.
        folds, pairs: how many there are.
        false_alarms: pairs whose truth is empty and whose prediction is not; they do not count into the Dice.
    """

    method: str
    alpha: float
    organ: str
    mean: float
    std: float
    low: float
    high: float
    folds: int
    pairs: int
    false_alarms: int


@dataclass(frozen=True)
class Test:
    """Two methods on the held-out cases that both have scored, at one share of missing annotations.

    The unit is the case: pairs of one case are not independent. A case that several folds hold out counts once, by its
    mean over them. Cases weigh so that their mean is the mean of the organs' means for `MEAN`, see `case_means`.

    Attributes:
        cases: how many.
        difference: mean Dice of the first less that of the second.
        low, high: its 95% bootstrap interval, None of one case.
        p: two-sided Wilcoxon signed-rank test; 1 where no case differs, or there is one alone. Of the organs it is
            corrected for their number (Holm), since each has a chance to differ; `MEAN` is one test.
    """

    first: str
    second: str
    alpha: float
    organ: str
    cases: int
    difference: float
    low: float | None
    high: float | None
    p: float

    def turned(self) -> "Test":
        """The second method against the first one."""
        low, high = (None if self.high is None else -self.high), (None if self.low is None else -self.low)
        return replace(self, first=self.second, second=self.first, difference=-self.difference, low=low, high=high)


def summary_rows(records: Sequence[CellRecord]) -> list[Row]:
    """One row for each method, share and organ, and for the mean of the organs."""
    groups: dict[tuple[str, float], list[CellRecord]] = defaultdict(list)
    for record in records:
        groups[record.cell.method, record.cell.alpha].append(record)
    rows = []
    for (method, alpha), own in groups.items():
        scores = [dice_of_pairs(record) for record in own]
        organs = list(dict.fromkeys(pair.organ for score in scores for pair in score))
        for organ in [*organs, MEAN]:
            chosen = [_organ_only(score, organ) for score in scores]
            means = [mean for score in chosen if (mean := _mean_of_organs(score.items())) is not None]
            if not means:
                continue
            low, high = _interval([score for score in chosen if score])
            alarms = sum(false_alarms(record, organ) for record in own)
            rows.append(
                Row(
                    method,
                    alpha,
                    organ,
                    float(np.mean(means)),
                    float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
                    low,
                    high,
                    len(means),
                    sum(map(len, chosen)),
                    alarms,
                )
            )
    return rows


def tests(records: Sequence[CellRecord]) -> list[Test]:
    """Each method against each other one, at every share at which both have cells."""
    scores: dict[tuple[str, float], dict[tuple[int, Pair], float]] = defaultdict(dict)
    for record in records:
        fold = record.cell.fold
        scores[record.cell.method, record.cell.alpha] |= {(fold, pair): d for pair, d in dice_of_pairs(record).items()}
    found = []
    methods = list(dict.fromkeys(method for method, _ in scores))
    for alpha in sorted({alpha for _, alpha in scores}):
        for first, second in combinations([each for each in methods if (each, alpha) in scores], 2):
            one, two = scores[first, alpha], scores[second, alpha]
            both = sorted(one.keys() & two.keys())
            organs = list(dict.fromkeys(pair.organ for _, pair in both))
            compared = [_test(first, second, alpha, organ, one, two, both) for organ in organs]
            corrected = holm([test.p for test in compared])
            found += [replace(test, p=p) for test, p in zip(compared, corrected, strict=True)]
            if both:
                found.append(_test(first, second, alpha, MEAN, one, two, both))
    return found


def holm(values: Sequence[float]) -> list[float]:
    """P values of several tests corrected for their number, in the given order.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda each: values[each])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def _test(
    first: str,
    second: str,
    alpha: float,
    organ: str,
    one: Mapping[tuple[int, Pair], float],
    two: Mapping[tuple[int, Pair], float],
    both: Sequence[tuple[int, Pair]],
) -> Test:
    keys = [key for key in both if organ in (MEAN, key[1].organ)]
    a, b = (case_means(_over_folds(each, keys)) for each in (one, two))
    compared = paired_difference(a, b)
    if len(a) < 2:
        return Test(first, second, alpha, organ, len(a), compared.mean, None, None, 1.0)
    return Test(first, second, alpha, organ, len(a), compared.mean, compared.low, compared.high, compared.p)


def _over_folds(scores: Mapping[tuple[int, Pair], float], keys: Sequence[tuple[int, Pair]]) -> dict[Pair, float]:
    """The mean of each pair over the folds that hold it out, sorted by pair."""
    found: dict[Pair, list[float]] = defaultdict(list)
    for fold, pair in keys:
        found[pair].append(scores[fold, pair])
    return {pair: float(np.mean(dice)) for pair, dice in sorted(found.items())}


def _organ_only(score: Mapping[Pair, float], organ: str) -> dict[Pair, float]:
    return {pair: dice for pair, dice in score.items() if organ in (MEAN, pair.organ)}


def _mean_of_organs(pairs: Iterable[tuple[Pair, float]]) -> float | None:
    """Mean of the organs' means: a frequent organ weighs no more than a rare one. None where there is no pair."""
    organs: dict[str, list[float]] = defaultdict(list)
    for pair, dice in pairs:
        organs[pair.organ].append(dice)
    return float(np.mean([np.mean(values) for values in organs.values()])) if organs else None


def _interval(folds: Sequence[Mapping[Pair, float]]) -> tuple[float, float]:
    """95% of the means of folds whose cases are drawn again, with replacement, all of their organs and in all folds."""
    rng = np.random.default_rng(_SEED)
    names = sorted({pair.case for score in folds for pair in score})
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), _DRAWS).astype(float)  # [draw, name]
    means = np.zeros(_DRAWS)
    for score in folds:
        own = sorted({pair.case for pair in score})
        table = _table(score)  # [case, organ], NaN where there is no pair
        weights = drawn[:, [names.index(case) for case in own]]  # [draw, case]
        counts = weights @ ~np.isnan(table)  # [draw, organ]
        sums = weights @ np.nan_to_num(table)
        with np.errstate(invalid="ignore"):
            of_organs = sums / counts
        of_organs = np.where(np.isnan(of_organs), np.nanmean(table, axis=0), of_organs)  # a draw without the organ
        means += of_organs.mean(axis=1) / len(folds)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _table(score: Mapping[Pair, float]) -> NDArray[np.float64]:
    cases, organs = (
        {each: n for n, each in enumerate(sorted(names))}
        for names in ({pair.case for pair in score}, {pair.organ for pair in score})
    )
    table = np.full((len(cases), len(organs)), np.nan)
    for pair, dice in score.items():
        table[cases[pair.case], organs[pair.organ]] = dice
    return table
