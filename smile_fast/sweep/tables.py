"""The tables of a sweep, of all cells that are finished."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from smile_fast.evaluation.scores import Outcome
from smile_fast.sweep.cell import RESULT, CellRecord, read_cell
from smile_fast.sweep.grid import CELLS
from smile_runtime.io.files import atomic_path

MEAN = "mean"
_WITH_TRUTH = (Outcome.SCORED, Outcome.MISSED)
"""A pair counts if its truth holds voxels: the same pairs for all methods. False alarms are counted apart."""


def finished_cells(out: Path) -> list[CellRecord]:
    """The results of all finished cells in a folder, by method, alpha and fold.

    Raises:
        InputError: one is damaged.
    """
    found = [read_cell(path.parent) for path in sorted((out / CELLS).glob(f"*/*/*/{RESULT}"))]
    return [record for record in found if record is not None]


def case_rows(records: Iterable[CellRecord]) -> list[tuple[str, float, int, str, str, float]]:
    """Method, alpha, fold, organ, case, Dice of every pair that counts."""
    return [
        (record.cell.method, record.cell.alpha, record.cell.fold, pair.organ, pair.case, pair.dice or 0.0)
        for record in records
        for pair in record.pairs
        if pair.outcome in _WITH_TRUTH
    ]


def write_tables(out: Path) -> list[Path]:
    """Write figure3.csv and figure3_cases.csv of all finished cells.

    Returns:
        The files; none where no cell is finished.
    """
    records = finished_cells(out)
    if not records:
        return []
    rows = case_rows(records)
    groups: dict[tuple[str, float, int, str], list[float]] = defaultdict(list)
    for *key, _, dice in rows:
        groups[tuple(key)].append(dice)  # type: ignore[index]  # the four of them
    means = [(*key, float(np.mean(values))) for key, values in groups.items()]
    return [
        _write(out / "figure3.csv", ("method", "alpha", "fold", "organ", "dice"), means),
        _write(out / "figure3_cases.csv", ("method", "alpha", "fold", "organ", "case", "dice"), rows),
    ]


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(
        [[f"{each:g}" if name == "alpha" else each for name, each in zip(head, row, strict=True)] for row in rows]
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path
