"""An evaluation that several processes make: the scores of a case as a part on disk, and the file that all parts make.

RUN/.evaluation-SPLIT.parts/PLAN/CASE.json    the scores of a case under a plan: split, settings, weights and truth

Parts of other plans lie in other folders: no process can mix them, and none waits for another.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from smile_fast import __version__
from smile_fast.data.case_info import LABELS
from smile_fast.evaluation.evaluate import Scoring, scored_weights, scores_of
from smile_fast.evaluation.predictions import prediction_files
from smile_fast.evaluation.results import Evaluation, read_scores, score_file, summarise, write_evaluation
from smile_fast.evaluation.scores import PairScore
from smile_fast.records import read_record, write_record
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason, sha256
from smile_runtime.sharding import Shard

if TYPE_CHECKING:
    import torch

    from smile_fast.training.run import Run

_SCHEMA: Final = 1


@dataclass(frozen=True)
class _Part:
    """The scores of a case.

    Attributes:
        plan: digest of what they were made by.
        label_map: SHA-256 of the file that was scored, None for the network's own.
        pairs: one an organ.
    """

    schema: Literal[1]
    plan: str
    label_map: str | None
    pairs: tuple[PairScore, ...]


class EvaluationParts:
    """The parts of one evaluation of a run.

    Args:
        run: a trained run.
        scoring: what is scored, and how.

    Raises:
        InputError: there is nothing to score, or its folder of label maps cannot be read.
    """

    def __init__(self, run: "Run", scoring: Scoring) -> None:
        self.run, self.scoring, self.cases = run, scoring, scoring.cases(run)
        self._files = None if scoring.predictions is None else prediction_files(self.cases, scoring.predictions)

    def has(self, case: str) -> bool:
        """Whether a case is scored; one whose part is damaged, or whose label map was replaced since, is not."""
        return self._read(case) is not None

    def write(self, case: str, pairs: Sequence[PairScore]) -> None:
        """Write the scores of a case."""
        part = _Part(_SCHEMA, self._plan, self._label_map(case), tuple(pairs))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self._folder}: cannot be made ({reason(error)}); make the folder of the run writable"
            ) from None
        write_record(self._folder / f"{case}.json", msgspec.to_builtins(part))

    def merge(self) -> Evaluation:
        """Put the scores of all cases together, write them into the run's folder, and drop the parts.

        Raises:
            InputError: cases are missing, or the scores cannot be written.
        """
        parts = {case: self._read(case) for case in self.cases}
        missing = [case for case, part in parts.items() if part is None]
        if len(missing) == len(parts) and (finished := self._finished()) is not None:
            return finished
        if missing:
            raise InputError(
                f"{self.run.path}: {len(missing)} of {len(parts)} {self.scoring.split} cases are not scored "
                f"({listed(missing, 3)}); run 'smile-fast evaluate' for their shards, with the same options"
            )
        pairs = (pair for part in parts.values() if part is not None for pair in part.pairs)
        evaluation = summarise(pairs, self.run.organs, **self.scoring.described(), weights=self._weights)
        write_evaluation(evaluation, self.run.path)
        self._drop()
        return evaluation

    @cached_property
    def _weights(self) -> str | None:
        return scored_weights(self.run, self.scoring)

    @cached_property
    def _plan(self) -> str:
        store, states = self.run.store, self.run.declarations()
        truth = {case: [store.cases[case].arrays[LABELS], states[case]] for case in self.cases}
        plan = {**asdict(self.scoring), "weights": self._weights, "truth": truth, "version": __version__}
        return hashlib.sha256(json.dumps(plan, default=str).encode()).hexdigest()

    @property
    def _folder(self) -> Path:
        stem = score_file(self.scoring.split, of_predictions=self.scoring.predictions is not None).removesuffix(".json")
        return self.run.path / f".{stem}.parts" / self._plan[:16]

    def _label_map(self, case: str) -> str | None:
        if self._files is None:
            return None
        file = self._files[case]
        return sha256(file) if file.is_file() else ""  # whoever scores it says what is wrong

    def _read(self, case: str) -> _Part | None:
        try:
            part = read_record(self._folder / f"{case}.json", _Part, _SCHEMA, "evaluate again")
        except InputError:
            return None
        return part if part.plan == self._plan and part.label_map == self._label_map(case) else None

    def _finished(self) -> Evaluation | None:
        """What has been put together before, if it is of the same network, cases and settings."""
        found = read_scores(self.run.path, self.scoring.split, of_predictions=self.scoring.predictions is not None)
        if found is None or self._weights is None:
            return None
        described = self.scoring.described()
        same = all(getattr(found, name) == value for name, value in described.items())
        return found if same and found.weights == self._weights and list(found.cases) == list(self.cases) else None

    def _drop(self) -> None:
        dropped = self._folder.with_name(f".{secrets.token_hex(8)}.dropped")
        with suppress(OSError):  # the scores are written: what is left over is in nobody's way
            self._folder.rename(dropped)  # all parts at once: who asks again must not find some of them
            shutil.rmtree(dropped)
            self._folder.parent.rmdir()


def evaluate_share(
    run: "Run", scoring: Scoring, shard: Shard, *, device: "torch.device | str" = "cpu", workers: int | None = None
) -> int:
    """Score a share of a split's cases, beside other processes; `finish_evaluation` puts all of them together.

    Args:
        run: a trained run.
        scoring: what is scored, and how; the same for all shares.
        shard: which of the cases; those that are scored already are not scored again.
        device: where the network runs.
        workers: see `evaluate_run`.

    Returns:
        Number of cases that were scored now.

    Raises:
        InputError: see `evaluate_run`.
    """
    parts = EvaluationParts(run, scoring)
    todo = [case for case in shard.of(parts.cases) if not parts.has(case)]
    for case, pairs in scores_of(run, todo, scoring, device, workers):
        parts.write(case, pairs)
    return len(todo)


def finish_evaluation(run: "Run", scoring: Scoring) -> Evaluation:
    """Put together what all shares have scored, as `evaluate_run` and `write_evaluation` would; see there.

    Raises:
        InputError: cases are missing, or the scores cannot be written.
    """
    return EvaluationParts(run, scoring).merge()
