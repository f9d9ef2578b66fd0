"""A sweep's figure3.csv as curves: what each method reaches at each share of missing annotations."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from smile_runtime.errors import InputError
from smile_runtime.io.files import reason

FIGURE3 = "figure3.csv"
COLUMNS = ("method", "alpha", "fold", "organ", "dice")
MEAN = "mean of organs"
SAMPLES = 2000
LEVEL = (2.5, 97.5)
REFERENCE = "smiler"

_REMEDY = "name the folder that 'smile-fast sweep' wrote"
Scores = dict[tuple[str, float, int, str], float]
"""(method, alpha, fold, organ) -> Dice."""


@dataclass(frozen=True)
class Estimate:
    """What a method reaches at one alpha.

    Attributes:
        folds: how many were measured. mean, std: of the Dice over folds; `std` is None of a single one.
        low, high: 95% interval of the mean, by drawing folds again; both None of a single one.
    """

    folds: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """How much better the reference is than another method at one alpha, over the same folds and organs.

    Attributes:
        pairs: number of (fold, organ) pairs that both have. points: mean difference in points of Dice (0.01).
        p: of the paired Wilcoxon test, two-sided; None where it cannot be made.
    """

    pairs: int
    points: float
    p: float | None


@dataclass(frozen=True)
class Sweep:
    """The scores of a sweep, with its methods, alphas and organs in their order."""

    scores: Scores

    @property
    def methods(self) -> tuple[str, ...]:
        """As they stand in the file."""
        return tuple(dict.fromkeys(method for method, _, _, _ in self.scores))

    @property
    def alphas(self) -> tuple[float, ...]:
        """Ascending."""
        return tuple(sorted({alpha for _, alpha, _, _ in self.scores}))

    @property
    def folds(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted({fold for _, _, fold, _ in self.scores}))

    @property
    def organs(self) -> tuple[str, ...]:
        """As they stand in the file."""
        return tuple(dict.fromkeys(organ for _, _, _, organ in self.scores))

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        return REFERENCE if REFERENCE in self.methods else self.methods[-1]

    def estimates(self, organ: str) -> dict[str, dict[float, Estimate]]:
        """Method -> alpha -> what it reaches; of one organ, or of their mean (`MEAN`)."""
        found: dict[str, dict[float, Estimate]] = {method: {} for method in self.methods}
        for method, alpha in product(self.methods, self.alphas):
            values = list(self._fold_values(method, alpha, organ))
            if values:
                found[method][alpha] = _estimate(np.array(values))
        return found

    def differences(self) -> dict[str, dict[float, Difference]]:
        """Other method -> alpha -> how much better the reference is."""
        found: dict[str, dict[float, Difference]] = {}
        for method in self.methods:
            if method != self.reference:
                own = {alpha: self._difference(method, alpha) for alpha in self.alphas}
                found[method] = {alpha: difference for alpha, difference in own.items() if difference is not None}
        return found

    def missing(self) -> int:
        """Number of (method, alpha, fold) of which the file has nothing though it has the like of it."""
        there = {(method, alpha, fold) for method, alpha, fold, _ in self.scores}
        return len(self.methods) * len(self.alphas) * len(self.folds) - len(there)

    def _fold_values(self, method: str, alpha: float, organ: str) -> Iterator[float]:
        for fold in self.folds:
            organs = self.organs if organ == MEAN else (organ,)
            values = [self.scores[key] for one in organs if (key := (method, alpha, fold, one)) in self.scores]
            if len(values) == len(organs):  # a mean over fewer organs would be of other ones
                yield float(np.mean(values))

    def _difference(self, method: str, alpha: float) -> Difference | None:
        differences = np.array(
            [
                self.scores[ours] - self.scores[theirs]
                for fold, organ in product(self.folds, self.organs)
                if (ours := (self.reference, alpha, fold, organ)) in self.scores
                and (theirs := (method, alpha, fold, organ)) in self.scores
            ]
        )
        if not differences.size:
            return None
        p = float(wilcoxon(differences).pvalue) if differences.any() else None
        return Difference(len(differences), 100 * float(differences.mean()), p)


def read_sweep(folder: Path) -> Sweep:
    """Read the table of a sweep.

    Raises:
        InputError: there is none, or a line is no score.
    """
    path = folder / FIGURE3
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise InputError(f"{path}: has not the columns {', '.join(COLUMNS)}; {_REMEDY}")
            scores = dict(_score(path, reader.line_num, row) for row in reader if row["dice"])
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path}: cannot be read ({why}); {_REMEDY}") from None
    if not scores:
        raise InputError(f"{path}: holds no score yet; finish a training of the sweep first")
    return Sweep(scores)


def _score(path: Path, line: int, row: Mapping[str, str]) -> tuple[tuple[str, float, int, str], float]:
    try:
        alpha, fold, dice = float(row["alpha"]), int(row["fold"]), float(row["dice"])
    except (TypeError, ValueError):
        raise InputError(f"{path}, line {line}: not a score; correct the line, or run the sweep again") from None
    if not (0 <= alpha <= 1 and 0 <= dice <= 1):
        raise InputError(f"{path}, line {line}: alpha and dice are shares; correct the line, or run the sweep again")
    return (row["method"], alpha, fold, row["organ"]), dice


def _estimate(values: NDArray[np.float64]) -> Estimate:  # [folds]
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(1, mean, None, None, None)
    drawn = np.random.default_rng(0).choice(values, size=(SAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, LEVEL)
    return Estimate(len(values), mean, float(values.std(ddof=1)), float(low), float(high))


def what_to_see(organ: str, estimates: Mapping[str, Mapping[float, Estimate]]) -> str:
    """One chart in words: what the methods reach at the largest alpha, and what they lose on the way there."""
    alphas = sorted({alpha for own in estimates.values() for alpha in own})
    if not alphas:
        return f"Nothing has been measured of {organ} yet."
    first, last = alphas[0], alphas[-1]
    there = [method for method in estimates if last in estimates[method]]
    reached = ", ".join(f"{method} {estimates[method][last].mean:.2f}" for method in there)
    sentence = f"With {last:.0%} of the annotations missing (α = {last:g}) they reach: {reached}."
    losses = {m: estimates[m][first].mean - estimates[m][last].mean for m in there if first in estimates[m]}
    if len(alphas) < 2 or len(losses) < 2:
        return sentence
    least, most = min(losses, key=lambda m: losses[m]), max(losses, key=lambda m: losses[m])
    return (
        f"{sentence} From α = {first:g} on {least} loses least, {100 * losses[least]:.0f} points of Dice, and {most} "
        f"most, {100 * losses[most]:.0f}: the flatter a line, the less missing annotations harm."
    )
