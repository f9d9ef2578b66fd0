"""Dice, NSD and HD95 of a run, over the (case, organ) pairs whose truth is drawn.

A pair that is not drawn has no truth: scoring it against background would punish a network for being right.
Those pairs are counted, never scored. Hidden pairs are drawn, so they are scored: evaluation, the label audit
and the report are the only readers of hidden labels. Means run over the pairs whose truth holds the organ, see
`smile_fast.evaluation.summary`.
"""

from smile_fast.evaluation.evaluate import Scoring, evaluate_run
from smile_fast.evaluation.results import (
    SPLITS,
    Evaluation,
    read_evaluation,
    read_evaluations,
    score_file,
    summarise,
    write_evaluation,
)
from smile_fast.evaluation.scores import NSD_TOLERANCE_MM, Outcome, PairScore, score_case
from smile_fast.evaluation.shares import evaluate_share, finish_evaluation
from smile_fast.evaluation.summary import FalseAlarms, OrganScore, Spread
from smile_fast.evaluation.tables import format_alarms, format_number, format_spread, format_table

__all__ = [
    "NSD_TOLERANCE_MM",
    "SPLITS",
    "Evaluation",
    "FalseAlarms",
    "OrganScore",
    "Outcome",
    "PairScore",
    "Scoring",
    "Spread",
    "evaluate_run",
    "evaluate_share",
    "finish_evaluation",
    "format_alarms",
    "format_number",
    "format_spread",
    "format_table",
    "read_evaluation",
    "read_evaluations",
    "score_case",
    "score_file",
    "summarise",
    "write_evaluation",
]
