"""What a sweep has written of all its cells, as its page shows it: methods at each share of missing annotations."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from smile_fast.sweep.pairs import MEAN
from smile_fast.sweep.statistics import Row, Test
from smile_fast.sweep.summary import Summary, read_summary
from smile_runtime.errors import InputError

REFERENCE = "smiler"
Estimates = Mapping[str, Mapping[float, Row]]
"""Method -> alpha -> what it reaches."""


@dataclass(frozen=True)
class SweepCurves:
    """The summary of a sweep, with its methods, alphas and organs in their order."""

    summary: Summary

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """As they stand in the summary."""
        return tuple(dict.fromkeys(row.method for row in self.summary.rows))

    @cached_property
    def alphas(self) -> tuple[float, ...]:
        """Ascending."""
        return tuple(sorted({row.alpha for row in self.summary.rows}))

    @property
    def folds(self) -> int:
        """The most that any method has at any alpha."""
        return max(row.folds for row in self.summary.rows)

    @cached_property
    def organs(self) -> tuple[str, ...]:
        """As they stand in the summary, without their mean."""
        return tuple(dict.fromkeys(row.organ for row in self.summary.rows if row.organ != MEAN))

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        return REFERENCE if REFERENCE in self.methods else self.methods[-1]

    def estimates(self, organ: str) -> Estimates:
        """What the methods reach; of one organ, or of their mean (`MEAN`)."""
        found: dict[str, dict[float, Row]] = {method: {} for method in self.methods}
        for row in self.summary.rows:
            if row.organ == organ:
                found[row.method][row.alpha] = row
        return found

    def differences(self, organ: str) -> dict[str, dict[float, Test]]:
        """Other method -> alpha -> how much better the reference is, of one organ or of their mean."""
        found: dict[str, dict[float, Test]] = {method: {} for method in self.methods if method != self.reference}
        for test in self.summary.tests:
            if test.organ == organ and self.reference in (test.first, test.second):
                own = test if test.first == self.reference else test.turned()
                found[own.second][test.alpha] = own
        return found

    def missing(self) -> int:
        """Number of (method, alpha, fold) that are not there though the like of it is."""
        there = sum(row.folds for row in self.summary.rows if row.organ == MEAN)
        return len(self.methods) * len(self.alphas) * self.folds - there


def read_curves(folder: Path) -> SweepCurves:
    """Read what a sweep has written.

    Raises:
        InputError: there is nothing, or it is damaged.
    """
    summary = read_summary(folder)
    if not summary.rows:
        raise InputError(f"{folder}: holds no score yet; finish a training of the sweep first")
    return SweepCurves(summary)


def what_to_see(organ: str, estimates: Estimates) -> str:
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
