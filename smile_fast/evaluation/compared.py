"""Evaluations of several runs beside each other, over the (case, organ) pairs that all of them have scored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from smile_fast.evaluation.comparison import paired_difference
from smile_fast.evaluation.results import Evaluation, summarise
from smile_fast.evaluation.scores import WITH_ORGAN, WITHOUT_ORGAN, PairScore
from smile_fast.evaluation.tables import format_alarms, format_number
from smile_fast.text_table import text_table

MEAN = "mean of organs"
FEWEST = 6
"""Pairs or cases below which no run is called better: resampled intervals of fewer are too narrow, and even if all
differences had one sign, chance would give that in more than 5% of all comparisons (2 / 2^5)."""
_SAME_VOLUME = 1e-6  # relative: sums of the same voxels in another order


class Key(NamedTuple):
    """One organ of one case."""

    case: str
    organ: str


@dataclass(frozen=True)
class Difference:
    """How much higher the Dice of a first run is than that of a second one.

    Attributes:
        organ: its name, or `MEAN`.
        units: pairs, or cases for `MEAN`: cases are drawn with all of their organs.
        difference: first less second. low, high: 95% bootstrap interval; p: of Wilcoxon's signed-rank test. None
            where there are too few units.
    """

    first: str
    second: str
    organ: str
    units: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def winner(self) -> str | None:
        """The run whose Dice is higher, if the interval excludes 0 and there are at least `FEWEST` units."""
        if self.low is None or self.high is None or self.units < FEWEST:
            return None
        return self.first if self.low > 0 else self.second if self.high < 0 else None


@dataclass(frozen=True)
class Comparison:
    """Runs over their common pairs.

    Attributes:
        runs: name -> its scores, of the common pairs alone, and the counts of those that nobody has drawn.
        left_out: name -> number of its pairs with a complete truth that another run has not.
        unlike: pairs whose truth has another volume in another run: it is not the same truth. They are left out.
        differences: of each two runs, for each organ and `MEAN`.
    """

    runs: dict[str, Evaluation]
    left_out: dict[str, int]
    unlike: tuple[Key, ...]
    differences: tuple[Difference, ...]

    @property
    def pairs(self) -> int:
        """Number of common pairs whose truth holds the organ: those that Dice runs over."""
        return sum(pair.outcome in WITH_ORGAN for pair in next(iter(self.runs.values())).pairs)

    @property
    def organs(self) -> list[str]:
        """Those of all runs."""
        return [row.organ for row in next(iter(self.runs.values())).organs]

    @property
    def empty(self) -> int:
        """Number of common pairs whose truth does not hold the organ: those that may be false alarms."""
        return sum(pair.outcome in WITHOUT_ORGAN for pair in next(iter(self.runs.values())).pairs)

    def winner(self, organ: str) -> str | None:
        """The run that beats every other one on an organ, or on `MEAN`, each with an interval that excludes 0."""
        for name in self.runs:
            own = [each for each in self.differences if each.organ == organ and name in (each.first, each.second)]
            if own and all(each.winner == name for each in own):
                return name
        return None

    def to_json(self) -> dict[str, Any]:
        """What `smile-fast compare --json` writes."""
        evaluations = list(self.runs.values())
        return {
            "schema": 1,
            "split": evaluations[0].split,
            "pairs": self.pairs,
            "pairs_without_organ": self.empty,
            "left_out": self.left_out,
            "runs": [
                {
                    "run": name,
                    "dice": evaluation.dice,
                    "organs": [
                        {
                            "organ": row.organ,
                            "dice": row.dice.mean,
                            "pairs": row.dice.pairs,
                            "pooled_dice": row.pooled_dice,
                            "volume_ratio": row.volume_ratio,
                            "false_alarms": row.false_alarms.pairs,
                            "pairs_without_organ": row.false_alarms.of,
                        }
                        for row in evaluation.organs
                    ],
                }
                for name, evaluation in self.runs.items()
            ],
            "differences": [{**vars(each), "winner": each.winner} for each in self.differences],
        }


def compare_evaluations(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Compare runs that were scored on the same split.

    Args:
        evaluations: name -> scores, at least one.
    """
    drawn = {name: _drawn(evaluation.pairs) for name, evaluation in evaluations.items()}
    first = next(iter(drawn.values()))
    shared = [key for key in first if all(key in own for own in drawn.values())]
    unlike = tuple(key for key in shared if not all(_same_truth(first[key], own[key]) for own in drawn.values()))
    common = set(shared) - set(unlike)
    undrawn = set.intersection(*(_undrawn(evaluation.pairs) for evaluation in evaluations.values()))
    organs = list(dict.fromkeys(row.organ for each in evaluations.values() for row in each.organs))
    runs = {name: _restricted(evaluation, common | undrawn, organs) for name, evaluation in evaluations.items()}
    dice = {name: _dice(evaluation.pairs) for name, evaluation in runs.items()}
    found = []
    for one, other in combinations(runs, 2):
        for organ in organs:
            keys = [key for key in dice[one] if key.organ == organ]
            found.append(_difference(one, other, organ, *([dice[run][key] for key in keys] for run in (one, other))))
        found.append(_difference(one, other, MEAN, case_means(dice[one]), case_means(dice[other])))
    left_out = {name: len(own) - len(common) for name, own in drawn.items()}
    return Comparison(runs, left_out, unlike, tuple(found))


def case_means(dice: Mapping[Key, float]) -> list[float]:
    """One number a case, whose mean is the mean of the organs' means.

    Where every case has every organ it is the mean of the case's organs. An organ that is there in few cases weighs
    more in them: case c has sum over its organs of Dice * cases / (organs * cases with it).
    """
    cases = list(dict.fromkeys(key.case for key in dice))
    organs = [key.organ for key in dice]
    counts = {organ: organs.count(organ) for organ in organs}
    sums = dict.fromkeys(cases, 0.0)
    for key, value in dice.items():
        sums[key.case] += value * len(cases) / (len(counts) * counts[key.organ])
    return list(sums.values())


def _drawn(pairs: Iterable[PairScore]) -> dict[Key, PairScore]:
    """The pairs with a complete truth."""
    return {Key(pair.case, pair.organ): pair for pair in pairs if pair.outcome in (*WITH_ORGAN, *WITHOUT_ORGAN)}


def _dice(pairs: Iterable[PairScore]) -> dict[Key, float]:
    return {Key(pair.case, pair.organ): pair.dice or 0.0 for pair in pairs if pair.outcome in WITH_ORGAN}


def _same_truth(one: PairScore, other: PairScore) -> bool:
    both = (one.truth_ml, other.truth_ml)
    return abs(both[0] - both[1]) <= _SAME_VOLUME * max(both)


def _undrawn(pairs: Iterable[PairScore]) -> set[Key]:
    return {Key(pair.case, pair.organ) for pair in pairs if pair.outcome not in (*WITH_ORGAN, *WITHOUT_ORGAN)}


def _restricted(evaluation: Evaluation, kept: set[Key], organs: Sequence[str]) -> Evaluation:
    """The same evaluation, of some of its pairs, in one order for all runs."""
    own = [pair for pair in evaluation.pairs if (pair.case, pair.organ) in kept]
    pairs = sorted(own, key=lambda pair: (pair.case, pair.organ))
    return summarise(pairs, organs, split=evaluation.split, nsd_tolerance_mm=evaluation.nsd_tolerance_mm)


def _difference(first: str, second: str, organ: str, a: Sequence[float], b: Sequence[float]) -> Difference:
    found = paired_difference(a, b)
    numbers = [None if np.isnan(value) else value for value in (found.mean, found.low, found.high, found.p)]
    return Difference(first, second, organ, found.pairs, *numbers)


def format_comparison(comparison: Comparison) -> str:
    """Return a comparison as plain text: each run's Dice, then the difference of each two."""
    left_out = ", ".join(f"{count} of {name}" for name, count in comparison.left_out.items())
    several = "s" * (comparison.pairs != 1)
    lines = [
        f"{comparison.pairs} common pair{several} whose truth holds the organ, {comparison.empty} without it",
        f"left out, because another run has not scored them: {left_out}",
        "",
        *text_table(_score_rows(comparison), rules=(1, len(comparison.organs) + 1)),
    ]
    for first, second in combinations(comparison.runs, 2):
        own = [each for each in comparison.differences if (each.first, each.second) == (first, second)]
        rows = [[f"{first} - {second}", "difference", "95% interval", "p", "of", "higher"]]
        lines += ["", *text_table(rows + [_difference_cells(each) for each in own], rules=(1, len(own)))]
    return "\n".join(
        [
            *lines,
            "",
            "interval: bootstrap over pairs, of the mean over cases with all of their organs; p: Wilcoxon's",
            "signed-rank test, two-sided; higher: the run whose Dice is higher, where the interval excludes 0 and",
            f"there are {FEWEST} or more",
        ]
    )


def _score_rows(comparison: Comparison) -> list[list[str]]:
    names, evaluations = list(comparison.runs), list(comparison.runs.values())
    rows = [["Dice", *names, *(f"false alarms, {name}" for name in names), "pairs"]]
    for of_runs in zip(*(evaluation.organs for evaluation in evaluations), strict=True):
        dice = (format_number(row.dice.mean) for row in of_runs)
        alarms = (format_alarms(row.false_alarms) for row in of_runs)
        rows.append([of_runs[0].organ, *dice, *alarms, str(of_runs[0].dice.pairs)])
    means = (format_number(evaluation.dice) for evaluation in evaluations)
    return [*rows, [MEAN, *means, *[""] * len(names), str(comparison.pairs)]]


def _difference_cells(found: Difference) -> list[str]:
    unit = "case" if found.organ == MEAN else "pair"
    units = f"{found.units} {unit}{'s' * (found.units != 1)}"
    interval = f"{_signed(found.low)} to {_signed(found.high)}"
    winner = found.winner or ("too few" if found.units < FEWEST else "not told apart")
    return [found.organ, _signed(found.difference), interval, format_number(found.p, 4), units, winner]


def _signed(value: float | None) -> str:
    return format_number(None) if value is None else f"{value:+.3f}"
