"""`smile-fast evaluate` and `smile-fast export` of a run that was trained for that, in seconds."""

import statistics
import time
from pathlib import Path
from typing import Any

from bench.commands.cohort import CommandError, command
from bench.commands.training import train
from bench.commands.workloads import CASE, EXPORT, START, Scoring
from bench.measure import COSTS
from bench.timing import rounded
from smile_fast.evaluation.results import read_evaluation
from smile_fast.training.run import Run

SPLITS = ("validation", "train")  # a small one and a large one: their difference is free of the start


def evaluate(workload: Scoring, folder: Path, device: str, cohorts: Path) -> dict[str, Any]:
    """Seconds a case of a large split over those of a small one, and what the start takes; each split is scored once.

    Raises:
        CommandError: a command failed.
        AssertionError: cases are missing from the scores.
    """
    run = train(workload.training, folder / "run", device, cohorts)
    splits = Run.open(run).splits
    seconds, cases = {}, {}
    for split in SPLITS:
        cases[split] = len(splits[split])
        seconds[split] = seconds_of("evaluate", run, "--split", split, "--device", device)
        scores = read_evaluation(run, split)
        assert scores is not None, f"{split}: no scores were written"
        assert set(scores.cases) == set(splits[split]), f"{split}: {len(scores.cases)} of {cases[split]} cases scored"
    small, large = SPLITS
    if cases[large] <= cases[small]:
        raise CommandError(f"{cases} cases: the difference of the splits says nothing")
    if seconds[large] <= seconds[small]:
        raise CommandError(f"{cases[large]} cases took no longer than {cases[small]}: run it again, alone")
    a_case = (seconds[large] - seconds[small]) / (cases[large] - cases[small])
    costs = {CASE: rounded(a_case), START: rounded(max(0.0, seconds[small] - a_case * cases[small]))}
    costs |= {f"{split}, {cases[split]} cases, s": rounded(taken) for split, taken in seconds.items()}
    return {COSTS: costs}


def export(workload: Scoring, folder: Path, device: str, cohorts: Path) -> dict[str, Any]:
    """Median seconds of an export. It ends with a certificate: agreement is a part of it.

    Raises:
        CommandError: a command failed.
    """
    run = train(workload.training, folder / "run", device, cohorts)
    files = [folder / f"model-{number}.onnx" for number in range(workload.repetitions)]
    taken = [seconds_of("export", run, file) for file in files]
    return {"bytes": files[0].stat().st_size, COSTS: {EXPORT: rounded(statistics.median(taken))}}


def seconds_of(*arguments: object) -> float:
    """Wall seconds of a command."""
    started = time.perf_counter()
    command(*arguments)
    return time.perf_counter() - started
