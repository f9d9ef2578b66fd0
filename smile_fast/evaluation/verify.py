"""Reading every file of a run to make sure that it is what was written."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from smile_fast.data.arrays import array_name, verify_array
from smile_fast.data.processes import run_jobs, worker_number
from smile_fast.data.verify import Verified
from smile_fast.evaluation.results import SPLITS, check_pair, read_scores
from smile_fast.training.integrity import check_files
from smile_fast.training.rounds import DROPPED, UNFINISHED, existing_rounds, open_round
from smile_runtime.errors import InputError
from smile_runtime.progress import progress

_READ = ".json", ".jsonl", ".csv", ".safetensors"
_RELABEL = "smile-fast relabel"


def verify_run(path: Path, workers: int | None = None) -> Verified:
    """Read config, environment, annotations, log, checkpoints, weights, scores, and rounds with their overlays.

    Args:
        path: folder of the run; its store is not looked at.
        workers: processes; by default one a CPU. 1 stays in this process.

    Raises:
        InputError: `workers` is no number of processes.
    """
    number = worker_number(workers)
    found = Verified(faults=[*check_files(path), *_damaged_scores(path)])
    for file in path.glob("[!.]*"):
        if file.suffix in _READ:
            found.read(file)
    jobs = []
    rounds = [(path / "rounds", number) for number in existing_rounds(path / "rounds")]
    rounds += [(path / "fill", 0)] if (path / "fill" / "0").is_dir() else []
    for parent, number_of_round in rounds:
        folder = parent / str(number_of_round)
        this = found.check(folder / "round.json", partial(open_round, parent, number_of_round))
        jobs += [] if this is None else [_Overlay(folder, case, digest) for case, digest in this.digests.items()]
    done = run_jobs(_verify_overlay, jobs, number, advice="run it again with fewer --workers")
    for overlay in progress(done, total=len(jobs), label="verifying overlays"):
        found.add(overlay)
    found.leftovers += _leftovers(path)
    found.faults.sort()
    return found


def _leftovers(path: Path) -> list[Path]:
    """What was cut short, or waits for its end: a round or scores in the making, and temporary files."""
    work = [*path.glob(".evaluation*.parts"), *path.glob(f"rounds/.*.{UNFINISHED}"), *path.glob(f"rounds/.*.{DROPPED}")]
    files = [file for file in path.rglob(".tmp-*") if not any(folder in file.parents for folder in work)]
    return sorted(work + files)


def _damaged_scores(path: Path) -> list[str]:
    faults = []
    for split, of_predictions in product(SPLITS, (False, True)):
        try:
            read_scores(path, split, of_predictions=of_predictions)
            check_pair(path, split, of_predictions=of_predictions)
        except InputError as error:
            faults.append(str(error))
    return faults


@dataclass(frozen=True)
class _Overlay:
    folder: Path  # of the round
    case: str
    digest: str


def _verify_overlay(job: _Overlay) -> Verified:
    found = Verified()
    path = job.folder / array_name(job.case, job.digest)
    found.check(path, lambda: verify_array(path, job.digest, command=_RELABEL))
    return found
