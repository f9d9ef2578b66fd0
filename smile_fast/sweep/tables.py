"""The files of a sweep that are made of all of its finished cells."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from smile_fast.sweep.cell import RESULT, CellRecord, read_cell
from smile_fast.sweep.figure3 import draw_figure3
from smile_fast.sweep.grid import CELLS
from smile_fast.sweep.pairs import dice_of_pairs
from smile_fast.sweep.statistics import Row, summary_rows, tests
from smile_fast.sweep.summary import write_summary
from smile_fast.training.presets import PRESETS
from smile_runtime.io.files import atomic_path


def finished_cells(out: Path) -> list[CellRecord]:
    """The results of all finished cells in a folder, by method, alpha and fold.

    Raises:
        InputError: one is damaged.
    """
    found = [read_cell(path.parent) for path in (out / CELLS).glob(f"*/*/*/{RESULT}")]
    records = [record for record in found if record is not None]
    order = {method: number for number, method in enumerate(PRESETS)}
    return sorted(records, key=lambda record: (order.get(record.cell.method, len(order)), str(record.cell)))


def write_tables(out: Path) -> list[Path]:
    """Write tables, tests and the figure of all finished cells.

    Returns:
        The files; none where no cell is finished.

    Raises:
        InputError: a result is damaged, or a file cannot be written.
    """
    records = finished_cells(out)
    if not records:
        return []
    cases, means = [], []
    for record in records:
        key = (record.cell.method, record.cell.alpha, record.cell.fold)
        organs: dict[str, list[float]] = defaultdict(list)
        for pair, dice in dice_of_pairs(record).items():
            cases.append((*key, pair.organ, pair.case, dice))
            organs[pair.organ].append(dice)
        means += [(*key, organ, float(np.mean(values))) for organ, values in organs.items()]
    rows = summary_rows(records)
    names = [field.name for field in fields(Row)]
    return [
        write_csv(out / "figure3.csv", ("method", "alpha", "fold", "organ", "dice"), means),
        write_csv(out / "figure3_cases.csv", ("method", "alpha", "fold", "organ", "case", "dice"), cases),
        write_summary(out, rows, tests(records)),
        write_csv(out / "summary.csv", names, [list(asdict(row).values()) for row in rows]),
        *draw_figure3(rows, out),
    ]


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a table, as a whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path
