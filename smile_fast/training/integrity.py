"""Whether the files of a run are those that were written."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.metrics import read_metrics
from smile_fast.training.rounds import existing_rounds, open_round
from smile_fast.training.run import Run
from smile_fast.training.run_record import read_environment
from smile_runtime.errors import InputError


def check_run(path: Path) -> Iterator[str]:
    """Read every file of a run, those of its rounds too; see `check_files`.

    Args:
        path: folder of the run; its store is not needed.

    Yields:
        One sentence a damaged file, which it names.
    """
    yield from check_files(path)
    rounds = path / "rounds"
    yield from _faults(partial(_read_round, rounds, number) for number in existing_rounds(rounds))


def check_files(path: Path) -> Iterator[str]:
    """Read config, environment, annotations, log, checkpoints and final weights of a run.

    Args:
        path: folder of the run; its store is not needed.

    Yields:
        One sentence a damaged file, which it names.
    """
    try:
        run = Run.open(path)
    except InputError as error:
        yield str(error)
        return
    checks: list[Callable[[], object]] = [
        partial(read_environment, run.path),
        run.declarations,
        partial(read_metrics, run),
        *(partial(Checkpoint.load, file) for file in run.weight_files),
    ]
    yield from _faults(checks)


def _faults(checks: Iterable[Callable[[], object]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except InputError as error:
            yield str(error)


def _read_round(rounds: Path, number: int) -> None:
    stored = open_round(rounds, number)
    for case in stored.cases:
        stored.pseudo_labels(case)
