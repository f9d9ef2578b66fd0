"""The cells of a sweep one after the other, shared with whoever else works in the same folder."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from smile_fast.data.folder_lock import locked
from smile_fast.sweep.cell import begins_like, filled_by, finished, run_cell
from smile_fast.sweep.grid import Cell, Sweep
from smile_fast.training.execution import Execution
from smile_runtime.errors import InputError


@dataclass(frozen=True)
class Budget:
    """How long cells may be started: until `ends`, a reading of the clock, if there is an end."""

    ends: float | None = None
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, seconds: float) -> "Budget":
        """So many seconds from now, 0 for no end."""
        return cls(time.monotonic() + seconds if seconds else None)

    @property
    def over(self) -> bool:
        """Whether no cell is to be started any more."""
        return self.ends is not None and self.clock() >= self.ends


def missing(sweep: Sweep, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are not finished.

    Raises:
        InputError: one was made by another plan.
    """
    return [cell for cell in cells if finished(sweep, cell) is None]


def work(sweep: Sweep, cells: Sequence[Cell], device: torch.device, execution: Execution, budget: Budget) -> None:
    """Compute what is not finished; a cell that another process has in hand is left to it.

    A cell that can start from the end of another one comes last, if that one is not there yet. One that is filled
    by another one is left out while that is in other hands.

    Raises:
        InputError: see `run_cell`.
    """
    times: list[float] = []
    later = [cell for cell in cells if _before(sweep, cell) in cells]
    queue = [*missing(sweep, cells), *missing(sweep, later)]
    for number, cell in enumerate(queue):
        again = cell in queue[number + 1 :]
        if budget.over:
            return
        other = _before(sweep, cell) if again or filled_by(sweep, cell) in cells else None
        if other is not None and finished(sweep, other) is None:
            continue  # whoever has the other one in hand is waited for by the next call
        with ExitStack() as held:
            folder = sweep.path(cell).parent
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(folder, f".fold-{cell.fold}.lock"))
            except InputError:
                continue  # in other hands
            if finished(sweep, cell) is not None:
                continue
            print(f"cell: {cell}", file=sys.stderr)
            times.append(run_cell(sweep, cell, device, execution).seconds)
        left = len(missing(sweep, cells))
        minutes = sum(times) / len(times) * left / 60
        print(f"{left} cells are left, about {minutes:.0f} min for one process", file=sys.stderr)


def _before(sweep: Sweep, cell: Cell) -> Cell | None:
    """The cell that this one starts from, or is filled by."""
    return filled_by(sweep, cell) or begins_like(sweep, cell)
