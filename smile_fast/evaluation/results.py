"""Scores of a whole split: averages, and the files that hold them."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Literal

import smile_fast
from smile_fast.data.folder_lock import locked, patiently
from smile_fast.evaluation.raters import RaterPair, RaterScores, summarise_raters
from smile_fast.evaluation.scores import WITH_ORGAN, PairScore
from smile_fast.evaluation.summary import OrganScore, SourceScore, organ_means, organ_score, source_scores
from smile_fast.records import read_record, write_record
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, flush, sha256

WORST_PAIRS = 5
_SCHEMA: Final = 3
_AGAIN = "run smile-fast evaluate again"
_OLDER = f"its means run over false alarms, too: {_AGAIN}"
SPLITS = ("test", "validation", "train")
"""In the order in which a page that shows one of them chooses."""


@dataclass(frozen=True)
class Evaluation:
    """All scores of one split of one run.

    `dice`, `nsd` and `hd95_mm` average the organs' means: a frequent organ weighs no more than a rare one. `sources` is
    empty where no case says where it comes from, `raters` is None where there are none but the store's labels.
    """

    split: str
    predictions: str | None  # folder of label maps that was scored, None for the run's own network
    nsd_tolerance_mm: float | None  # None when surfaces were not measured
    version: str
    cases: tuple[str, ...]
    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    organs: tuple[OrganScore, ...]
    worst: tuple[PairScore, ...]
    pairs: tuple[PairScore, ...]
    weights: str | None  # SHA-256 of the network's file, None for a folder of label maps
    plan: str | None = None  # digest of all that decides the scores but label maps, see `plan_of`
    label_maps: dict[str, str] | None = None  # case -> SHA-256 of the label map that was scored, where a folder was
    sources: tuple[SourceScore, ...] = ()
    raters: RaterScores | None = None


@dataclass(frozen=True, kw_only=True)
class _EvaluationRecord(Evaluation):
    """What the file holds."""

    schema: Literal[3]
    csv: str  # SHA-256 of the table that was written with it


def summarise(
    pairs: Iterable[PairScore],
    organs: Sequence[str],
    *,
    split: str,
    nsd_tolerance_mm: float | None,
    predictions: str | None = None,
    weights: str | None = None,
    plan: str | None = None,
    label_maps: Mapping[str, str] | None = None,
    raters: Sequence[str] = (),
    rater_pairs: Iterable[RaterPair] = (),
) -> Evaluation:
    """Average pairs into one row an organ and the mean over organs.

    Args:
        pairs: the scores.
        organs: [K] names.
        split: test, validation or train.
        nsd_tolerance_mm: see `score_case`.
        predictions: folder of label maps that was scored, None for the run's own network.
        weights: SHA-256 of the network's file.
        plan: see `Inputs`.
        label_maps: likewise.
        raters: folders of the raters beside the store's labels.
        rater_pairs: agreement with all raters, where there are any.
    """
    pairs = tuple(pairs)
    rows = tuple(organ_score(organ, pairs) for organ in organs)
    dice, nsd, hd95_mm = organ_means(rows)
    ranked = sorted(
        (pair for pair in pairs if pair.dice is not None), key=lambda pair: (pair.dice, pair.case, pair.organ)
    )
    return Evaluation(
        split=split,
        predictions=predictions,
        nsd_tolerance_mm=nsd_tolerance_mm,
        version=smile_fast.__version__,
        cases=tuple(dict.fromkeys(pair.case for pair in pairs)),
        dice=dice,
        nsd=nsd,
        hd95_mm=hd95_mm,
        organs=rows,
        worst=tuple(ranked[:WORST_PAIRS]),
        pairs=pairs,
        weights=weights,
        plan=plan,
        label_maps=None if label_maps is None else dict(label_maps),
        sources=source_scores(pairs, organs),
        raters=summarise_raters(rater_pairs, organs, raters, _with_organ(pairs, organs)) if raters else None,
    )


def _with_organ(pairs: Sequence[PairScore], organs: Sequence[str]) -> dict[str, int]:
    return {organ: sum(pair.organ == organ and pair.outcome in WITH_ORGAN for pair in pairs) for organ in organs}


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write a JSON file (everything) and a CSV file (one line a pair) into a run folder; see `score_file`.

    The JSON file names the digest of the other: a process that is killed between the two leaves a pair that
    `check_pair` refuses.

    Returns:
        The JSON file.

    Raises:
        InputError: they cannot be written, or others write them for longer than a moment.
    """
    path = folder / score_file(evaluation.split, of_predictions=evaluation.predictions is not None)
    table = io.StringIO()
    columns = [field.name for field in fields(PairScore)]
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: getattr(pair, column) for column in columns} for pair in evaluation.pairs)
    text = table.getvalue().encode()
    record = {"schema": _SCHEMA, **asdict(evaluation), "csv": hashlib.sha256(text).hexdigest()}
    with (
        patiently(lambda: locked(folder, _writing(path))),
        atomic_path(path.with_suffix(".csv")) as temporary,  # there as a whole before the other is renamed
    ):
        temporary.write_bytes(text)
        flush(temporary)
        write_record(path, record)
    return path


def check_pair(folder: Path, split: str, *, of_predictions: bool) -> None:
    """Make sure that the two files of a split's scores were written together, if there are any.

    Raises:
        InputError: one of them is damaged or gone, or they are of two evaluations.
    """
    path = folder / score_file(split, of_predictions=of_predictions)
    if not path.exists():
        return
    with patiently(lambda: locked(folder, _writing(path))):
        table, record = path.with_suffix(".csv"), _read(path)
        if not table.exists():
            raise InputError(f"{table}: there is no such file; {_AGAIN}")
        if sha256(table) != record.csv:
            raise InputError(f"{table}: is not the table that was written with {path.name}; {_AGAIN}")


def _writing(path: Path) -> str:
    return f".{path.stem}.writing"


def score_file(split: str, *, of_predictions: bool = False) -> str:
    """Name of the JSON file of a split's scores: evaluation.json for the held-out cases, evaluation-SPLIT.json else.

    Scores of label maps from elsewhere have a name of their own, evaluation-of-predictions: they are not the run's.
    """
    return f"evaluation{'-of-predictions' * of_predictions}{f'-{split}' * (split != 'test')}.json"


def read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Read what a run scored: split -> scores, in the order of `SPLITS`.

    Raises:
        InputError: a file is not what `write_evaluation` writes.
    """
    return {split: evaluation for split in SPLITS if (evaluation := read_evaluation(folder, split)) is not None}


def read_evaluation(folder: Path, split: str = "test") -> Evaluation | None:
    """Read a split's scores from a run folder; None when the run was not evaluated on it.

    Raises:
        InputError: the file is not what `write_evaluation` writes.
    """
    return read_scores(folder, split, of_predictions=False)


def read_scores(folder: Path, split: str, *, of_predictions: bool) -> Evaluation | None:
    """Read the scores of the run's network, see `read_evaluation`, or those of label maps from elsewhere."""
    path = folder / score_file(split, of_predictions=of_predictions)
    if not path.exists():
        return None
    record = _read(path)
    found = Evaluation(**{field.name: getattr(record, field.name) for field in fields(Evaluation)})
    if found.split != split:
        raise InputError(
            f"{path}: holds the scores of split {found.split}; run smile-fast evaluate --split {split} again"
        )
    return found


def _read(path: Path) -> _EvaluationRecord:
    return read_record(path, _EvaluationRecord, _SCHEMA, _AGAIN, older=_OLDER)
