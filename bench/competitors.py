"""The table of competitors: what the methods of a finished sweep reach under one trainer.

python -m bench.competitors SWEEP [--alpha 0.7]     # -> bench/results/competitors.json, README.md

SWEEP is what `smile-fast sweep` wrote. Each method is compared with SMILE trained for as many steps as SMILEr takes
with its rounds, on the same held-out cases; steps stand beside the Dice, for a comparison is fair at equal steps. The
sweep of the README:

smile-fast sweep STORE SWEEP --alphas .7 --methods baseline-long,marginal-long,naive-long,channel-drop-long,\
no-epsilon-long,smile-long,smiler,smiler-plain,fill,full-long
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import ROOT, commit, cpu
from smile_fast.sweep.cell import CellRecord
from smile_fast.sweep.pairs import MEAN
from smile_fast.sweep.statistics import summary_rows, tests
from smile_fast.sweep.tables import finished_cells
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.presets import PRESETS
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, write_json

RECORD = ROOT / "bench" / "results" / "competitors.json"
BEGIN, END = "<!-- competitors:begin -->\n", "<!-- competitors:end -->\n"
REFERENCE = "smile-long"
_HIGHEST_P = 0.001  # below it the table says no more than that


def cells_at(sweep: Path, alpha: float) -> list[CellRecord]:
    """The finished cells of a share of missing annotations: the same folds of every method.

    Raises:
        InputError: there are none, the reference is not among them, or a method lacks a fold that another one has.
    """
    records = finished_cells(sweep)
    chosen = [record for record in records if round(record.cell.alpha, 2) == round(alpha, 2)]
    if not chosen:
        there = ", ".join(f"{each:g}" for each in sorted({record.cell.alpha for record in records}))
        raise InputError(f"{sweep}: has no finished cell at alpha {alpha:g}; give one of: {there or 'none'}")
    folds: dict[str, set[int]] = {}
    for record in chosen:
        folds.setdefault(record.cell.method, set()).add(record.cell.fold)
    if REFERENCE not in folds:
        raise InputError(f"{sweep}: has no cell of {REFERENCE}, which all are compared with; add it to the sweep")
    for method, own in folds.items():
        if lacking := set().union(*folds.values()) - own:
            raise InputError(f"{sweep}: fold {min(lacking)} of {method} is not finished; finish the sweep first")
    return chosen


def competitors(sweep: Path, records: Sequence[CellRecord]) -> dict[str, dict[str, Any]]:
    """Method -> its line, its steps, the Dice of each organ and of their mean, and what it gains over the reference."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if (method := record.cell.method) not in found:
            steps = Checkpoint.load(sweep / record.cell.folder / "model.safetensors").state["total_steps"]
            line = PRESETS[method].line if method in PRESETS else ""
            found[method] = {"line": line, "steps": steps, "dice": {}, "gain": {}}
    for row in summary_rows(records):
        found[row.method]["dice"][row.organ] = {"mean": row.mean, "low": row.low, "high": row.high}
    for test in tests(records):
        if REFERENCE in (test.first, test.second):
            own = test if test.second == REFERENCE else test.turned()
            gain = {"mean": own.difference, "low": own.low, "high": own.high, "p": own.p, "cases": own.cases}
            found[own.first]["gain"][own.organ] = gain
    return found


def table(record: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    methods = record["methods"]
    organs = [organ for organ in methods[REFERENCE]["dice"] if organ != MEAN]
    lines = [
        f"| method | what the voxels of an organ teach where it is missing | steps | {' | '.join(organs)} | mean (95%) "
        f"| against `{REFERENCE}`, points (95%) |",
        "|---|---|---|" + "---|" * (len(organs) + 2),
    ]
    for name, method in methods.items():
        dice = [_mean_of(method["dice"], organ) for organ in organs]
        mean = method["dice"][MEAN]
        whole = f"{mean['mean']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
        cells = [f"`{name}`", method["line"], f"{method['steps']:,}", *dice, whole, _gain(method["gain"].get(MEAN))]
        lines.append(f"| {' | '.join(cells)} |")
    splits = "one random split" if record["folds"] == 1 else f"{record['folds']} random splits"
    cohort = f"Dice at a share of {record['alpha']:g} missing annotations, {splits}"
    said = f"{cohort}; differences and Wilcoxon's p over held-out cases. {record['cpu']}, commit {record['commit']}."
    return "\n".join([*lines, "", said, ""])


def _mean_of(dice: Mapping[str, Mapping[str, float]], organ: str) -> str:
    return f"{dice[organ]['mean']:.3f}" if organ in dice else ""


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    if gain["low"] is None:  # of one case
        return _points(gain["mean"])
    p = f"p < {_HIGHEST_P}" if gain["p"] < _HIGHEST_P else f"p = {gain['p']:.3f}"
    return f"{_points(gain['mean'])} ({_points(gain['low'])} to {_points(gain['high'])}), {p}"


def _points(dice: float) -> str:
    return f"{100 * dice + 0.0:+.1f}"  # -0.0 + 0.0 is 0.0


def write_table(readme: Path, text: str) -> None:
    """Put the table into the README, between its marks."""
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    with atomic_path(readme) as path:
        path.write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")


def main(arguments: Sequence[str] | None = None, record_path: Path = RECORD, readme: Path = ROOT / "README.md") -> None:
    """Read a sweep, record what its methods reach, and write the README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="folder that smile-fast sweep wrote")
    parser.add_argument("--alpha", type=float, default=0.7, help="share of missing annotations (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        records = cells_at(given.sweep, given.alpha)
        methods = competitors(given.sweep, records)
    except InputError as error:
        parser.error(str(error))
    folds = len({record.cell.fold for record in records})
    record = {**commit(), "cpu": cpu(), "alpha": given.alpha, "folds": folds, "methods": methods}
    write_json(record_path, record)
    text = table(record)
    write_table(readme, text)
    print(text, end="")


if __name__ == "__main__":
    main()
