"""One cell: an ordinary run that is trained, scored, and sealed by a record that says what it was made of."""

import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from smile_fast.data.folder_lock import locked
from smile_fast.evaluation import NSD_TOLERANCE_MM, evaluate_run, write_evaluation
from smile_fast.evaluation.scores import PairScore
from smile_fast.records import read_record, write_record
from smile_fast.sweep.grid import ROUNDS_ONLY, Cell, Sweep
from smile_fast.training.execution import Execution
from smile_fast.training.fill import fill
from smile_fast.training.loop import train
from smile_fast.training.run import Run
from smile_fast.training.run_record import is_run
from smile_runtime.errors import InputError

RESULT, PLAN = "cell.json", "plan.json"
_SCHEMA: Literal[1] = 1


@dataclass(frozen=True)
class PlanRecord:
    """What a cell is made of, by its digest; it appears with the run's folder."""

    schema: Literal[1]
    plan: str


@dataclass(frozen=True)
class CellRecord:
    """The result of a finished cell; `seconds` is what its training and scoring took in the process that ended it."""

    schema: Literal[1]
    plan: str
    cell: Cell
    seconds: float
    pairs: tuple[PairScore, ...]


def read_cell(path: Path) -> CellRecord | None:
    """The result in a cell's folder; None while it is not finished.

    Raises:
        InputError: it is damaged, or of another version.
    """
    if not (path / RESULT).exists():
        return None
    return read_record(path / RESULT, CellRecord, _SCHEMA, f"remove {path} and sweep again")


def finished(sweep: Sweep, cell: Cell) -> CellRecord | None:
    """The result of a cell, None if it is still to be computed.

    Raises:
        InputError: what is there was made by another plan.
    """
    path = sweep.path(cell)
    if is_run(path):
        made = read_record(path / PLAN, PlanRecord, _SCHEMA, f"remove {path} and sweep again")
        if made.plan != sweep.plan(cell):
            raise InputError(
                f"{path}: was made from another store, or with other settings, another seed or version; sweep into a "
                "new folder, or give the same again"
            )
    return read_cell(path)


def run_cell(sweep: Sweep, cell: Cell, device: torch.device, execution: Execution) -> CellRecord:
    """Train and score a cell; one that was begun goes on from its checkpoint. Whoever calls holds its lock.

    Raises:
        InputError: see `finished`, `train` and `evaluate_run`.
        Interrupted: after SIGTERM or Ctrl-C, when the checkpoint is on disk.
    """
    done = finished(sweep, cell)
    if done is not None:
        return done
    started, path = time.monotonic(), sweep.path(cell)
    run = Run.open(path, sweep.store) if is_run(path) else _create(sweep, cell, device)
    with locked(run.path):
        if not run.model_path.exists():
            train(run, resume=run.has_checkpoint, device=device, execution=execution)
        tolerance = NSD_TOLERANCE_MM if sweep.surfaces else None
        evaluation = evaluate_run(run, nsd_tolerance_mm=tolerance, device=device, workers=1)
    write_evaluation(evaluation, run.path)
    seconds = round(time.monotonic() - started, 1)
    record = CellRecord(_SCHEMA, sweep.plan(cell), cell, seconds, evaluation.pairs)
    write_record(path / RESULT, asdict(record))
    return record


def _create(sweep: Sweep, cell: Cell, device: torch.device) -> Run:
    other = begins_like(sweep, cell)
    same = None if other is None or finished(sweep, other) is None else Run.open(sweep.path(other), sweep.store)

    filler = filled_by(sweep, cell)
    if filler is not None and finished(sweep, filler) is None:
        raise InputError(f"{cell}: is filled by {filler}, which is not finished; add {filler.method} to --methods")

    def begin(run: Run) -> None:
        if same is not None and same.checkpoint_path.exists():
            shutil.copyfile(same.checkpoint_path, run.checkpoint_path)
            shutil.copyfile(same.metrics_path, run.metrics_path)
            print(f"{cell}: starts from the end of {same.path}", file=sys.stderr)
        if filler is not None:
            fill(run, sweep.path(filler), device)
        write_record(run.path / PLAN, asdict(PlanRecord(_SCHEMA, sweep.plan(cell))))

    path = sweep.path(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    return Run.create(
        path, sweep.config(cell), sweep.store, sweep.declarations(cell), str(device), begin, sweep.split(cell)
    )


def filled_by(sweep: Sweep, cell: Cell) -> Cell | None:
    """The cell whose network labels the missing organs of this one before its training; None if none does."""
    method = sweep.presets[cell.method].filled_by
    return replace(cell, method=method) if method else None


def begins_like(sweep: Sweep, cell: Cell) -> Cell | None:
    """The cell whose whole training is bit for bit what this one does before its rounds; None if there is none."""
    config = sweep.config(cell)
    if not config.last_round:
        return None
    own = sweep.presets[cell.method]
    for method in (name for name, preset in sweep.presets.items() if preset.all_annotations == own.all_annotations):
        plain = sweep.config(other := replace(cell, method=method))
        alike = replace(config, **{name: getattr(plain, name) for name in ROUNDS_ONLY}) == plain
        if alike and plain.method == "smile" and not sweep.presets[method].filled_by:
            return other
    return None
