"""Whether the files of a run are those that were written."""

from collections.abc import Iterator
from pathlib import Path

from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.metrics import read_metrics
from smile_fast.training.run import Run
from smile_fast.training.run_record import read_environment
from smile_runtime.errors import InputError


def check_run(path: Path) -> Iterator[str]:
    """Read config, environment, annotations, log, checkpoints and final weights of a run; its rounds are not looked at.

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
    files = [file for file in (run.checkpoint_path, run.previous_path, run.model_path) if file.exists()]
    checks = [
        lambda: read_environment(run.path),
        run.declarations,
        lambda: read_metrics(run),
        *(lambda file=file: Checkpoint.load(file) for file in files),
    ]
    for check in checks:
        try:
            check()
        except InputError as error:
            yield str(error)
