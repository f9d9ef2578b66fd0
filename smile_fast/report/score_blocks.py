"""The scores of a page: one block a split, each with a table and a chart of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smile_fast.evaluation import SPLITS, Evaluation, Outcome, Spread
from smile_fast.report.collect import RunRecord
from smile_fast.report.figures import dice_chart


@dataclass(frozen=True)
class ScoreLine:
    """One run's scores of one organ; `best` marks the highest Dice among the runs."""

    run: str
    dice: Spread
    nsd: Spread
    hd95_mm: Spread
    outcomes: Mapping[str, int]
    best: bool


@dataclass(frozen=True)
class ScoreBlock:
    """The scores of all runs that were evaluated on one split.

    Attributes:
        split: test, validation or train.
        evaluations: run name -> scores.
        scores: organ, and one line a run.
        means: per run the means over organs.
        outcomes: those that get a column.
        tolerances: of the NSD, mm; none when no run measured surfaces.
        chart: every case's Dice, SVG as a data URI.
        comparable: whether all runs were scored on the same cases; those of two folds were not.
        without: runs that were not scored on this split, but on another.
    """

    split: str
    evaluations: Mapping[str, Evaluation]
    scores: list[tuple[str, list[ScoreLine]]]
    means: list[dict[str, Any]]
    outcomes: list[Outcome]
    tolerances: list[float]
    chart: str
    comparable: bool
    without: list[str]


def score_blocks(records: Sequence[RunRecord], organs: Sequence[str], colours: Mapping[str, str]) -> list[ScoreBlock]:
    """One block for each split that some run was evaluated on, the one of cards and pictures first."""
    blocks = []
    for split in SPLITS:
        found = {record.name: record.evaluations[split] for record in records if split in record.evaluations}
        if not found:
            continue
        blocks.append(
            ScoreBlock(
                split=split,
                evaluations=found,
                scores=_scores(found, organs),
                means=_means(found),
                outcomes=_outcomes(found),
                tolerances=sorted({e.nsd_tolerance_mm for e in found.values() if e.nsd_tolerance_mm is not None}),
                chart=dice_chart(found, organs, colours),
                comparable=len({evaluation.cases for evaluation in found.values()}) == 1,
                without=[record.name for record in records if record.evaluations and split not in record.evaluations],
            )
        )
    return blocks


def _scores(evaluations: Mapping[str, Evaluation], organs: Sequence[str]) -> list[tuple[str, list[ScoreLine]]]:
    """Per organ one line a run, the best Dice marked when there is something to compare."""
    table = []
    for organ in organs:
        rows = {
            name: row for name, evaluation in evaluations.items() for row in evaluation.organs if row.organ == organ
        }
        means = [row.dice.mean for row in rows.values() if row.dice.mean is not None]
        top = max(means) if len(means) > 1 else None
        lines = [
            ScoreLine(name, row.dice, row.nsd, row.hd95_mm, row.outcomes, top is not None and row.dice.mean == top)
            for name, row in rows.items()
        ]
        table.append((organ, lines))
    return table


def _outcomes(evaluations: Mapping[str, Evaluation]) -> list[Outcome]:
    """The outcomes that get a column."""
    met = {pair.outcome for evaluation in evaluations.values() for pair in evaluation.pairs}
    return [outcome for outcome in Outcome if outcome in met or outcome in (Outcome.SCORED, Outcome.MISSED)]


def _means(evaluations: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Per run the means over organs and the summed outcomes."""
    top = max((e.dice for e in evaluations.values() if e.dice is not None), default=None)
    return [
        {
            "run": name,
            "dice": evaluation.dice,
            "nsd": evaluation.nsd,
            "hd95_mm": evaluation.hd95_mm,
            "outcomes": {
                outcome.value: sum(row.outcomes[outcome.value] for row in evaluation.organs) for outcome in Outcome
            },
            "cases": len(evaluation.cases),
            "best": len(evaluations) > 1 and evaluation.dice is not None and evaluation.dice == top,
        }
        for name, evaluation in evaluations.items()
    ]
