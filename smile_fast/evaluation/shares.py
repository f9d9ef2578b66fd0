"""An evaluation that several processes make: the scores of a case as a part on disk, and the file that all parts make.

RUN/.evaluation-SPLIT.parts/PLAN/CASE.json    the scores of a case under a plan: split, settings, weights and truth

Parts of other plans lie in other folders: no process can mix them. RUN/.evaluation-SPLIT.lock is shared by those who
score, and held alone by who puts the scores together and drops all parts.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from smile_fast.data.folder_lock import locked, patiently, shared
from smile_fast.evaluation.evaluate import CaseScores, Inputs, Scoring, scores_of, summarise_cases
from smile_fast.evaluation.kept_maps import KeptMaps
from smile_fast.evaluation.raters import RaterPair
from smile_fast.evaluation.results import (
    Evaluation,
    check_pair,
    read_scores,
    score_file,
    write_evaluation,
)
from smile_fast.evaluation.scores import PairScore
from smile_fast.records import read_record, write_record
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.sharding import Shard

if TYPE_CHECKING:
    import torch

    from smile_fast.training.run import Run

_SCHEMA: Final = 2


@dataclass(frozen=True)
class _Part:
    """The scores of a case.

    Attributes:
        label_map: SHA-256 of the file that was scored, None for the network's own.
        pairs: one an organ. raters: one an organ that every rater has drawn.
    """

    schema: Literal[2]
    label_map: str | None
    pairs: tuple[PairScore, ...]
    raters: tuple[RaterPair, ...]


class EvaluationParts:
    """The parts of one evaluation of a run.

    Args:
        run: a trained run.
        scoring: what is scored, and how.
        write: folder that keeps the label maps, see `KeptMaps`; None keeps none.

    Raises:
        InputError: there is nothing to score, what it is made of cannot be read, or label maps cannot be kept.
    """

    def __init__(self, run: "Run", scoring: Scoring, write: Path | None = None) -> None:
        self.run, self.scoring, self.cases = run, scoring, scoring.cases(run)
        self._inputs = Inputs.of(run, scoring)
        self.kept = KeptMaps.of(write, scoring, self._inputs, self.cases)
        self._of_predictions = scoring.predictions is not None
        stem = Path(score_file(scoring.split, of_predictions=self._of_predictions)).stem
        self._all_plans = run.path / f".{stem}.parts"
        self._folder = self._all_plans / self._inputs.plan[:16]
        self.lock = f".{stem}.lock"

    def finished(self) -> Evaluation | None:
        """The scores in the run's folder, if they are made of what is here now, and whole with their table."""
        split, of_predictions = self.scoring.split, self._of_predictions
        try:
            check_pair(self.run.path, split, of_predictions=of_predictions)
            found = read_scores(self.run.path, split, of_predictions=of_predictions)
        except InputError:  # they are made again
            return None
        same = found is not None and Inputs(found.weights, found.plan or "", found.label_maps) == self._inputs
        return found if same else None

    def has(self, case: str) -> bool:
        """Whether a case is scored, and its label map kept where it is to be.

        One whose part is damaged, or whose label map was replaced since, is not.
        """
        return self._read(case) is not None and (self.kept is None or self.kept.has(case))

    def write(self, case: str, scores: CaseScores) -> None:
        """Write the scores of a case."""
        part = _Part(_SCHEMA, self._label_map(case), scores.pairs, scores.raters)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self._folder}: cannot be made ({reason(error)}); make the folder of the run writable"
            ) from None
        write_record(self._folder / f"{case}.json", msgspec.to_builtins(part))

    def merge(self) -> Evaluation:
        """Put the scores of all cases together, and write them into the run's folder.

        Raises:
            InputError: cases are missing, or the scores cannot be written.
        """
        parts = {case: self._read(case) for case in self.cases}
        if missing := [case for case, part in parts.items() if part is None]:
            raise InputError(
                f"{self.run.path}: {len(missing)} of {len(parts)} {self.scoring.split} cases are not scored "
                f"({listed(missing, 3)}); run 'smile-fast evaluate' for their shards, with the same options"
            )
        scores = [CaseScores(part.pairs, part.raters) for part in parts.values() if part is not None]
        evaluation = summarise_cases(scores, self.run, self.scoring, self._inputs)
        write_evaluation(evaluation, self.run.path)
        return evaluation

    def sweep(self) -> None:
        """Drop the parts, also those of other plans of the split; the caller sees to it that nobody is at work on them.

        How many scored cases of others are dropped is said.
        """
        others = [part for part in self._all_plans.glob("*/*.json") if part.parent != self._folder]
        if others:
            print(
                f"note: {self._all_plans}: {len(others)} scored cases of other weights or options are dropped",
                file=sys.stderr,
            )
        shutil.rmtree(self._all_plans, ignore_errors=True)  # what stays is in nobody's way

    def _label_map(self, case: str) -> str | None:
        return None if self._inputs.label_maps is None else self._inputs.label_maps[case]

    def _read(self, case: str) -> _Part | None:
        try:
            part = read_record(self._folder / f"{case}.json", _Part, _SCHEMA, "evaluate again")
        except InputError:
            return None
        return part if part.label_map == self._label_map(case) else None


def evaluate_share(
    run: "Run",
    scoring: Scoring,
    shard: Shard,
    *,
    write: Path | None = None,
    device: "torch.device | str" = "cpu",
    workers: int | None = None,
) -> int | None:
    """Score a share of a split's cases, beside other processes; `finish_evaluation` puts all of them together.

    Args:
        run: a trained run.
        scoring: what is scored, and how; the same for all shares.
        shard: which of the cases; those that are scored already are not scored again.
        write: folder that keeps the label maps, the same for all shares; see `KeptMaps`.
        device: where the network runs.
        workers: see `evaluate_run`.

    Returns:
        Number of cases that were scored now; None if somebody has put the scores of all of them together already.

    Raises:
        InputError: see `evaluate_run`.
    """
    parts = EvaluationParts(run, scoring, write)
    with patiently(lambda: shared(run.path, parts.lock)):
        if parts.finished() is not None and (parts.kept is None or parts.kept.finished()):
            return None
        todo = [case for case in shard.of(parts.cases) if not parts.has(case)]
        for case, scores in scores_of(run, todo, scoring, device, workers, parts.kept):
            parts.write(case, scores)
    return len(todo)


def finish_evaluation(run: "Run", scoring: Scoring, write: Path | None = None) -> Evaluation:
    """Put together what all shares have scored, as `evaluate_run` and `write_evaluation` would; see there.

    Scores that were put together before, of the same weights, truth, label maps and settings, are read again.

    Raises:
        InputError: cases are missing, others are still at work on scores of the split, or what was made cannot be
            written.
    """
    parts = EvaluationParts(run, scoring, write)
    with locked(run.path, parts.lock) as alone:
        if parts.kept is not None:
            parts.kept.finish()
        evaluation = parts.finished() or parts.merge()
        if alone:
            parts.sweep()
    return evaluation
