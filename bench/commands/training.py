"""`smile-fast train` at its own settings: steps a second, how busy the GPU is, and the same step on one batch."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from bench.commands.cohort import CommandError, command, store
from bench.commands.gpu_use import GpuUse
from bench.commands.workloads import BUSY, CAPTURED, SHARE, STEPS, Training
from bench.measure import COSTS
from bench.timing import rounded

ONE_BATCH = "bench.commands.one_batch"


class Steady(NamedTuple):
    """The part of a training that counts.

    Attributes:
        steps, seconds: of it; it ends with the training.
        losses: of all lines of the training, each the mean of some steps.
    """

    steps: int
    seconds: float
    losses: list[float]


def train(workload: Training, run: Path, device: str, cohorts: Path) -> Path:
    """Train a run by the command line."""
    prepared = store(workload.cohort, cohorts)
    settings = ("--backbone", workload.backbone, "--epochs", workload.epochs, "--device", device)
    command("train", prepared, run, *settings, *workload.options)
    return run


def measure(workload: Training, folder: Path, device: str, cohorts: Path) -> dict[str, Any]:
    """Train, then replay one step on one batch; facts and costs of the record.

    Raises:
        CommandError: a command failed.
        AssertionError: the loss did not fall.
    """
    store(workload.cohort, cohorts)  # before the sampling begins
    with GpuUse() as use:
        run = train(workload, folder / "run", device, cohorts)
    metrics = run / "metrics.jsonl"
    steady = steady_part(metrics.read_text(encoding="utf-8"), workload.warmup)
    begin, end = steady.losses[0], statistics.mean(steady.losses[-max(1, len(steady.losses) // 4) :])
    assert math.isfinite(end), f"a loss of {end}"
    assert end < begin, f"the loss did not fall: {begin:.4f} to {end:.4f}"
    rate = steady.steps / steady.seconds
    costs = {STEPS: rounded(rate)}
    finished = metrics.stat().st_mtime  # its last line is written after the last step
    busy = use.mean(finished - steady.seconds, finished)
    if busy is not None:
        costs[BUSY] = rounded(busy)
    replayed = one_batch(run, device, workload.replays)
    costs |= {CAPTURED: rounded(replayed["steps/s"]), SHARE: rounded(rate / replayed["steps/s"])}
    facts = {key: value for key, value in replayed.items() if key != "steps/s"}
    return {"steps": steady.steps, "loss": [rounded(begin), rounded(end)], **facts, COSTS: costs}


def steady_part(metrics: str, warmup: float) -> Steady:
    """What metrics.jsonl says of the steps after the warm-up.

    Raises:
        CommandError: it holds too few lines.
    """
    lines = [line for line in map(json.loads, metrics.splitlines()) if "seconds" in line]
    first = math.ceil(len(lines) * warmup)
    if first < 1 or first >= len(lines):
        raise CommandError(f"metrics.jsonl holds {len(lines)} lines: too few steps to leave a warm-up out")
    begin, end = lines[first - 1], lines[-1]
    seconds = end["seconds"] - begin["seconds"]
    return Steady(end["iteration"] - begin["iteration"], seconds, [line["loss"] for line in lines])


def one_batch(run: Path, device: str, steps: int) -> dict[str, Any]:
    """Steps a second of a run's step on one batch that is on the device, in a process of its own."""
    arguments = [sys.executable, "-m", ONE_BATCH, str(run), "--device", device, "--steps", str(steps)]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise CommandError(f"{ONE_BATCH} ended with status {done.returncode}:\n{done.stdout}{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
