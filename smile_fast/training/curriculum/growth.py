"""Whether the candidates of an organ grow from round to round, or exceed what annotated cases show."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from smile_fast.training.curriculum.ranges import OrganRange

if TYPE_CHECKING:
    from smile_fast.training.rounds import OrganCounts

Candidates = Mapping[str, "OrganCounts"]
"""case -> organ -> numbers of voxels, as a round's record has them."""
Means = Mapping[str, float]
"""organ -> mean volume of its candidates in a round over the cases in which it is missing, ml."""
GROWTH = 1.5  # of the warnings of a run whose settings name no other factor


def mean_candidates(cases: Candidates, voxel_ml: Mapping[str, float]) -> dict[str, float]:
    """Mean volume of an organ's candidates over the cases in which it is missing, ml.

    Args:
        cases: of a round.
        voxel_ml: case -> volume of a voxel, ml.
    """
    volumes: dict[str, list[float]] = {}
    for case, organs in sorted(cases.items()):
        for organ, numbers in organs.items():
            volumes.setdefault(organ, []).append(numbers["candidates"] * voxel_ml[case])
    return {organ: float(np.mean(each)) for organ, each in volumes.items()}


def runaway_organs(rounds: Sequence[Means], ranges: Mapping[str, OrganRange], growth: float = GROWTH) -> dict[str, str]:
    """The organs whose candidates run away in the last of some rounds, each with the reason.

    Args:
        rounds: what the rounds found, in order.
        ranges: organ -> range of the annotated cases.
        growth: factor between the last two rounds from which on candidates grow.
    """
    if not rounds:
        return {}
    last, before = rounds[-1], rounds[-2] if len(rounds) > 1 else {}
    found = {}
    for organ, ml in last.items():
        annotated = ranges[organ] if organ in ranges and ranges[organ].cases else None
        beyond, was, reasons = annotated is not None and ml > annotated.most_ml, before.get(organ, 0.0), []
        # From below the range of annotated cases into it, growth is what rounds are for.
        if was > 0 and ml > growth * was and (annotated is None or was > annotated.low_ml or beyond):
            reasons.append(f"grew from {was:.3g} to {ml:.3g} ml a case")
        if annotated is not None and beyond:
            reasons.append(f"are {ml:.3g} ml a case, annotated cases at most {annotated.most_ml:.3g} ml")
        if reasons:
            found[organ] = " and ".join(reasons)
    return found


def growth_warnings(rounds: Mapping[int, Means], ranges: Mapping[str, OrganRange], growth: float = GROWTH) -> list[str]:
    """Sentences about every round in which the candidates of an organ run away; see `runaway_organs`.

    Args:
        rounds: number -> what the round found.
        ranges: organ -> range of the annotated cases.
        growth: see `runaway_organs`.
    """
    numbers, sentences = sorted(rounds), []
    for last in range(1, len(numbers) + 1):
        until = [rounds[number] for number in numbers[:last]]
        for organ, reason in runaway_organs(until, ranges, growth).items():
            sentences.append(f"round {numbers[last - 1]}: {organ}: its candidates {reason}")
    return sentences
