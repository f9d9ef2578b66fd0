"""Whether the candidates of an organ grow from round to round, or exceed what annotated cases show."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from smile_fast.training.curriculum.ranges import OrganRange

if TYPE_CHECKING:
    from smile_fast.training.rounds import OrganCounts

Candidates = Mapping[str, "OrganCounts"]
"""case -> organ -> numbers of voxels, as a round's record has them."""
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


def runaway_organs(
    rounds: Sequence[Candidates],
    voxel_ml: Mapping[str, float],
    ranges: Mapping[str, OrganRange],
    growth: float = GROWTH,
) -> dict[str, str]:
    """The organs whose candidates run away in the last of some rounds, each with the reason.

    Args:
        rounds: what the rounds found, in order.
        voxel_ml: case -> volume of a voxel, ml.
        ranges: organ -> range of the annotated cases.
        growth: factor between the last two rounds from which on candidates grow.
    """
    if not rounds:
        return {}
    last = mean_candidates(rounds[-1], voxel_ml)
    before = mean_candidates(rounds[-2], voxel_ml) if len(rounds) > 1 else {}
    found = {}
    for organ, ml in last.items():
        reasons = []
        if before.get(organ, 0.0) > 0 and ml > growth * before[organ]:
            reasons.append(f"grew from {before[organ]:.3g} to {ml:.3g} ml a case")
        if organ in ranges and ml > ranges[organ].ml:
            reasons.append(f"are {ml:.3g} ml a case, annotated cases at most {ranges[organ].ml:.3g} ml")
        if reasons:
            found[organ] = " and ".join(reasons)
    return found


def growth_warnings(
    rounds: Mapping[int, Candidates],
    voxel_ml: Mapping[str, float],
    ranges: Mapping[str, OrganRange],
    growth: float = GROWTH,
) -> list[str]:
    """Sentences about every round in which the candidates of an organ run away; see `runaway_organs`.

    Args:
        rounds: number -> what the round found, e.g. `StoredRound.cases`.
        voxel_ml: see `runaway_organs`.
        ranges: likewise.
        growth: likewise.
    """
    numbers, sentences = sorted(rounds), []
    for last in range(1, len(numbers) + 1):
        until = [rounds[number] for number in numbers[:last]]
        for organ, reason in runaway_organs(until, voxel_ml, ranges, growth).items():
            sentences.append(f"round {numbers[last - 1]}: {organ}: its candidates {reason}")
    return sentences
