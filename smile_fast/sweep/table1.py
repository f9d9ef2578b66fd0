"""Table 1 of the paper: labels counted on a cohort beside the formulas of alpha, beta and epsilon.

Both are shares of all voxels. They agree where all cases are of one size and have as much of the organ.
"""

from pathlib import Path

from smile_fast.supervision.audit import audit_store
from smile_fast.sweep.tables import write_csv
from smile_fast.training.run import Run

HEAD = ("organ", "alpha", "beta", "labels", "measured", "formula")


def table1_rows(run: Run) -> list[tuple[object, ...]]:
    """By organ and kind of label: its measured share and what the paper's formula says; see `HEAD`."""
    audit = audit_store(run.store, run.declarations(), run.cases("train"))
    rows: list[tuple[object, ...]] = []
    for row in audit.organs:
        if row.alpha is None or row.beta is None:
            continue
        alpha, beta = row.alpha, row.beta
        pairs = {
            "baseline TP": (row.baseline.tp, (1 - alpha) * beta),
            "baseline FN": (row.baseline.fn, alpha * beta),
            "baseline TN": (row.baseline.tn, 1 - beta),
            "SMILE TP": (row.smile.tp, (1 - alpha) * beta),
            "SMILE FN": (row.smile.fn, 0.0),
            "SMILE TN": (row.smile.tn, (1 - alpha) * (1 - beta) + row.epsilon),
        }
        for name, (count, formula) in pairs.items():
            measured = "" if count is None else count / audit.voxels
            rows.append((row.organ, alpha, beta, name, measured, formula))
    return rows


def write_table1(run: Run, out: Path) -> Path:
    """Write table1.csv.

    Raises:
        InputError: the store is damaged, or the file cannot be written.
    """
    return write_csv(out / "table1.csv", HEAD, table1_rows(run))
