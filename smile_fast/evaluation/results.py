"""Scores of a whole split: averages, files and the text table."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Literal

import numpy as np

import smile_fast
from smile_fast.data.folder_lock import locked, patiently
from smile_fast.evaluation.scores import WITHOUT_HD95, Outcome, PairScore
from smile_fast.records import read_record, write_record
from smile_fast.text_table import text_table
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, flush, sha256

WORST_PAIRS = 5
_SCHEMA: Final = 2
_AGAIN = "run smile-fast evaluate again"
SPLITS = ("test", "validation", "train")
"""In the order in which a page that shows one of them chooses."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over pairs; std is 0 for one pair, both are None for none."""

    mean: float | None
    std: float | None
    pairs: int

    def __post_init__(self) -> None:
        """Refuse, as `ValueError`, one of them without the other."""
        if (self.mean is None) != (self.std is None):
            raise ValueError("a mean without a standard deviation")


@dataclass(frozen=True)
class OrganScore:
    """One organ's row of the table; `outcomes` counts its pairs by outcome."""

    organ: str
    dice: Spread
    nsd: Spread
    hd95_mm: Spread
    outcomes: dict[str, int]


@dataclass(frozen=True)
class Evaluation:
    """All scores of one split of one run.

    `dice`, `nsd` and `hd95_mm` average the organs' means: a frequent organ weighs no more than a rare one.
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


@dataclass(frozen=True, kw_only=True)
class _EvaluationRecord(Evaluation):
    """What the file holds."""

    schema: Literal[2]
    csv: str  # SHA-256 of the table that was written with it

    def __post_init__(self) -> None:
        if any(row.outcomes.keys() != {outcome.value for outcome in Outcome} for row in self.organs):
            raise ValueError("other outcomes")


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
) -> Evaluation:
    """Average pairs into one row an organ and the mean over organs."""
    pairs = tuple(pairs)
    rows = []
    for organ in organs:
        own = [pair for pair in pairs if pair.organ == organ]
        rows.append(
            OrganScore(
                organ=organ,
                dice=_spread(pair.dice for pair in own),
                nsd=_spread(pair.nsd for pair in own),
                hd95_mm=_spread(pair.hd95_mm for pair in own),
                outcomes={outcome.value: sum(pair.outcome is outcome for pair in own) for outcome in Outcome},
            )
        )
    ranked = sorted(
        (pair for pair in pairs if pair.dice is not None), key=lambda pair: (pair.dice, pair.case, pair.organ)
    )
    return Evaluation(
        split=split,
        predictions=predictions,
        nsd_tolerance_mm=nsd_tolerance_mm,
        version=smile_fast.__version__,
        cases=tuple(dict.fromkeys(pair.case for pair in pairs)),
        dice=_spread(row.dice.mean for row in rows).mean,
        nsd=_spread(row.nsd.mean for row in rows).mean,
        hd95_mm=_spread(row.hd95_mm.mean for row in rows).mean,
        organs=tuple(rows),
        worst=tuple(ranked[:WORST_PAIRS]),
        pairs=pairs,
        weights=weights,
        plan=plan,
        label_maps=None if label_maps is None else dict(label_maps),
    )


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
    return read_record(path, _EvaluationRecord, _SCHEMA, _AGAIN)


def format_table(evaluation: Evaluation) -> str:
    """Return the evaluation as a plain text table, one row an organ, then the mean and the worst pairs."""
    surfaces = evaluation.nsd_tolerance_mm is not None
    head = ["organ", "Dice"]
    if surfaces:
        head += [f"NSD {evaluation.nsd_tolerance_mm:g} mm", "HD95 mm"]
    counted = [outcome.value for outcome in Outcome]
    rows = [[*head, *counted]]
    for row in evaluation.organs:
        cells = [row.organ, format_spread(row.dice)]
        if surfaces:
            cells += [format_spread(row.nsd), format_spread(row.hd95_mm, 1)]
        rows.append([*cells, *(str(row.outcomes[name]) for name in counted)])
    means = [(evaluation.dice, 3), (evaluation.nsd, 3), (evaluation.hd95_mm, 1)][: len(head) - 1]
    total = [str(sum(row.outcomes[name] for row in evaluation.organs)) for name in counted]
    rows.append(["mean of organs", *(format_number(mean, digits) for mean, digits in means), *total])

    lines = text_table(rows, rules=(1, len(rows) - 1))
    infinite = sum(pair.outcome in WITHOUT_HD95 for pair in evaluation.pairs)
    if surfaces and infinite:
        pairs = "pair" if infinite == 1 else "pairs"
        lines += ["", f"HD95 leaves out {infinite} missed or false-alarm {pairs}, where it is infinite"]
    if evaluation.worst:
        lines += ["", "lowest Dice:"]
        lines += [
            f"  {format_number(pair.dice)}  {pair.case}, {pair.organ}"
            + ("" if pair.outcome is Outcome.SCORED else f" ({pair.outcome.value})")
            for pair in evaluation.worst
        ]
    return "\n".join(lines)


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, a dash for one that does not exist."""
    return "–" if value is None else f"{value:.{digits}f}"


def format_spread(spread: Spread, digits: int = 3) -> str:
    """Return mean ± standard deviation; without the latter for one pair."""
    if spread.mean is None:
        return format_number(None)
    return format_number(spread.mean, digits) + (f" ± {spread.std:.{digits}f}" if spread.pairs > 1 else "")


def _spread(values: Iterable[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    if not known:
        return Spread(None, None, 0)
    return Spread(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0, len(known))
