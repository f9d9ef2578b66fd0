"""What the settings of the brakes come to in a round: the same in every process, from the index and earlier rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from smile_fast.training.config import TrainConfig
from smile_fast.training.curriculum.braking import Braking
from smile_fast.training.curriculum.fit import digest_of, fits
from smile_fast.training.curriculum.growth import Candidates, Means, growth_warnings, mean_candidates, runaway_organs
from smile_fast.training.curriculum.limits import Limits, whole_voxels
from smile_fast.training.curriculum.ranges import annotated_ranges, voxel_ml
from smile_fast.training.rounds import Round, existing_rounds, open_round
from smile_fast.training.unfinished_round import Judge

if TYPE_CHECKING:
    from smile_fast.training.view import TrainingView


def round_of(
    config: TrainConfig, view: "TrainingView", rounds: Path, number: int, gamma: float | None = None, scope: str = ""
) -> Round:
    """A round of a run's curriculum under the run's brakes.

    What a round learns first, see `fit_round`, is not in it yet.

    Args:
        config: of the run.
        view: its training cases, human labels only.
        rounds: folder of its rounds, with the one before.
        number: t.
        gamma: share of the candidates; None for that of the curriculum.
        scope: what the share is selected from; "" for the run's.
    """
    gamma, scope = config.gamma(number) if gamma is None else gamma, scope or config.scope
    brakes, organs = config.brakes, view.organs
    limited, stop = brakes.limit_volume or brakes.limit_slices or brakes.margin > 0, brakes.stop
    ranked = brakes.score != "probability" or brakes.calibrate
    if not (limited or stop or brakes.one_component or brakes.negatives or ranked):
        return Round(number, gamma, scope)
    ranges = {name: own for name, own in annotated_ranges(view).items() if own.cases} if limited else {}
    barred = open_round(rounds, number - 1).stopped if stop and number - 1 in existing_rounds(rounds) else ()
    braking = Braking(
        negatives=min(1.0, number / config.rounds) * brakes.negatives,
        room_ml={organ: ranges[organ].room_ml(brakes.margin) for organ in organs if brakes.margin and organ in ranges},
        one_component=brakes.one_component,
        most_ml={organ: ranges[organ].most_ml for organ in organs if brakes.limit_volume and organ in ranges},
        most_mm={organ: ranges[organ].mm for organ in organs if brakes.limit_slices and organ in ranges},
        barred=barred,
        growth=brakes.growth if stop else 0.0,
        score=brakes.score,
        fitted_to=digest_of(view, config.seed, number) if fits(config) else "",
    )
    return Round(number, gamma, scope, braking)


def as_begun(this: Round, begun: Round | None) -> Round:
    """The round with what was learned when it was begun, so that the two can be compared; nothing is learned again."""
    if this.braking is None or begun is None or begun.braking is None:
        return this
    judged, temperatures = begun.braking.judged, begun.braking.temperatures
    return replace(this, braking=replace(this.braking, judged=judged, temperatures=temperatures))


def limits_of(braking: Braking, view: "TrainingView", case: str, organ: int) -> Limits | None:
    """The limits of an organ in a case; None if it gets no pseudo-labels."""
    name = view.organs[organ]
    if name in braking.barred:
        return None
    mm, ml = braking.most_mm.get(name), braking.most_ml.get(name)
    return Limits.of(braking.one_component, mm, ml, view.spacing(case)[0], voxel_ml(view.store.cases[case]))


def rooms_of(braking: Braking, view: "TrainingView", case: str, organs: Sequence[int]) -> list[int | None] | None:
    """How many voxels of a case may be an organ at all, None for one that nobody has drawn; None without a margin."""
    if not braking.room_ml:
        return None
    volumes = [braking.room_ml.get(view.organs[organ]) for organ in organs]
    return [None if ml is None else whole_voxels(ml, voxel_ml(view.store.cases[case])) for ml in volumes]


def judge_of(view: "TrainingView", rounds: Path, this: Round) -> Judge:
    """What decides, once all candidates of a round are known, which organs get no pseudo-labels in it."""

    def judge(found: Candidates) -> tuple[str, ...]:
        braking = this.braking
        if braking is None or not braking.growth:
            return ()
        means = _means(view, {**_before(rounds, this.number), this.number: found})
        runaway = runaway_organs([means[number] for number in sorted(means)], annotated_ranges(view), braking.growth)
        return tuple(organ for organ in view.organs if organ in runaway or organ in braking.barred)

    return judge


def warnings_of_round(view: "TrainingView", rounds: Path, number: int, growth: float) -> list[str]:
    """What is to be said about the candidates of a finished round, whatever the brakes did."""
    means = _means(view, {**_before(rounds, number), number: open_round(rounds, number).cases})
    sentences = growth_warnings(means, annotated_ranges(view), growth)
    return [sentence for sentence in sentences if sentence.startswith(f"round {number}: ")]


def _means(view: "TrainingView", rounds: Mapping[int, Candidates]) -> dict[int, Means]:
    sizes = {case: voxel_ml(view.store.cases[case]) for case in view.cases}
    return {number: mean_candidates(found, sizes) for number, found in rounds.items()}


def _before(rounds: Path, number: int) -> dict[int, Candidates]:
    """What the round before found, if there is one."""
    return {number - 1: open_round(rounds, number - 1).cases} if number - 1 in existing_rounds(rounds) else {}
