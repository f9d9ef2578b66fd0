"""The scores of a page: one block a split, each with a table and a chart of its own.

Several runs are shown over the (case, organ) pairs that all of them have scored: a number of other pairs says nothing
about which run is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smile_fast.evaluation import SPLITS, Evaluation, OrganScore, Outcome
from smile_fast.evaluation.compared import MEAN, Comparison, compare_evaluations
from smile_fast.evaluation.raters import RaterScores
from smile_fast.evaluation.summary import mean
from smile_fast.report.collect import RunRecord
from smile_fast.report.figures import dice_chart

_IN_FALSE_ALARMS = (Outcome.FALSE_ALARM, Outcome.BOTH_EMPTY)


@dataclass(frozen=True)
class ScoreLine:
    """One run's scores of one organ; `best` marks a Dice that is higher than that of every other run, beyond chance."""

    run: str
    score: OrganScore
    best: bool


@dataclass(frozen=True)
class SourceLine:
    """One run's scores of one organ in the cases of one source."""

    source: str
    cases: int
    run: str
    score: OrganScore


@dataclass(frozen=True)
class ScoreBlock:
    """The scores of all runs that were evaluated on one split.

    Attributes:
        split: test, validation or train.
        evaluations: run name -> scores; of several runs those of their common pairs, if there are any.
        scores: organ, and one line a run.
        means: per run the means over organs.
        outcomes: those that get a column.
        tolerances: of the NSD, mm; none when no run measured surfaces.
        chart: every case's Dice, SVG as a data URI.
        comparison: of the runs over their common pairs; None of one run, or where no pair is common.
        comparable: whether the numbers can be compared: one run, or several with common pairs.
        sources: lines by organ and source; none where no case says where it comes from.
        raters: run name -> agreement with several raters, of the runs that were compared with them.
        without: runs that were not scored on this split, but on another.
    """

    split: str
    evaluations: Mapping[str, Evaluation]
    scores: list[tuple[str, list[ScoreLine]]]
    means: list[dict[str, Any]]
    outcomes: list[Outcome]
    tolerances: list[float]
    chart: str
    comparison: Comparison | None
    comparable: bool
    sources: list[tuple[str, list[SourceLine]]]
    raters: Mapping[str, RaterScores]
    without: list[str]


def score_blocks(records: Sequence[RunRecord], organs: Sequence[str], colours: Mapping[str, str]) -> list[ScoreBlock]:
    """One block for each split that some run was evaluated on, the one of cards and pictures first."""
    blocks = []
    for split in SPLITS:
        found = {record.name: record.evaluations[split] for record in records if split in record.evaluations}
        if not found:
            continue
        comparison = _comparison(found)
        shown = found if comparison is None else comparison.runs
        blocks.append(
            ScoreBlock(
                split=split,
                evaluations=shown,
                scores=_scores(shown, organs, comparison),
                means=_means(shown, comparison),
                outcomes=_outcomes(shown),
                tolerances=sorted({e.nsd_tolerance_mm for e in found.values() if e.nsd_tolerance_mm is not None}),
                chart=dice_chart(shown, organs, colours),
                comparison=comparison,
                comparable=comparison is not None or len(found) == 1,
                sources=_sources(shown, organs),
                raters={name: each.raters for name, each in found.items() if each.raters is not None},
                without=[record.name for record in records if record.evaluations and split not in record.evaluations],
            )
        )
    return blocks


def _comparison(evaluations: Mapping[str, Evaluation]) -> Comparison | None:
    """Runs over their common pairs; None of one run, or where none is common whose truth holds the organ."""
    if len(evaluations) < 2:
        return None
    comparison = compare_evaluations(evaluations)
    return comparison if comparison.pairs else None


def _scores(
    evaluations: Mapping[str, Evaluation], organs: Sequence[str], comparison: Comparison | None
) -> list[tuple[str, list[ScoreLine]]]:
    """Per organ one line a run, the best Dice marked where the common pairs tell it from every other one."""
    table = []
    for organ in organs:
        best = comparison.winner(organ) if comparison else None
        rows = [
            (name, row) for name, evaluation in evaluations.items() for row in evaluation.organs if row.organ == organ
        ]
        table.append((organ, [ScoreLine(name, row, name == best) for name, row in rows]))
    return table


def _outcomes(evaluations: Mapping[str, Evaluation]) -> list[Outcome]:
    """The outcomes that get a column of their own."""
    met = {pair.outcome for evaluation in evaluations.values() for pair in evaluation.pairs}
    shown = [outcome for outcome in Outcome if outcome not in _IN_FALSE_ALARMS]
    return [outcome for outcome in shown if outcome in met or outcome in (Outcome.SCORED, Outcome.MISSED)]


def _means(evaluations: Mapping[str, Evaluation], comparison: Comparison | None) -> list[dict[str, Any]]:
    """Per run the means over organs and the summed outcomes."""
    best = comparison.winner(MEAN) if comparison else None
    return [
        {
            "run": name,
            "dice": evaluation.dice,
            "pooled_dice": mean(row.pooled_dice for row in evaluation.organs),
            "nsd": evaluation.nsd,
            "hd95_mm": evaluation.hd95_mm,
            "outcomes": {
                outcome.value: sum(row.outcomes[outcome.value] for row in evaluation.organs) for outcome in Outcome
            },
            "cases": len(evaluation.cases),
            "best": name == best,
        }
        for name, evaluation in evaluations.items()
    ]


def _sources(evaluations: Mapping[str, Evaluation], organs: Sequence[str]) -> list[tuple[str, list[SourceLine]]]:
    """Per organ one line a source and run."""
    names = sorted({each.source for evaluation in evaluations.values() for each in evaluation.sources})
    return [
        (
            organ,
            [
                SourceLine(name, each.cases, run, row)
                for name in names
                for run, evaluation in evaluations.items()
                for each in evaluation.sources
                for row in each.organs
                if each.source == name and row.organ == organ
            ],
        )
        for organ in organs
        if names
    ]
