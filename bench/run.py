"""Runs workloads, each in a process of its own: what one leaves in the heap changes the page faults of the next."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench import heap, machine
from bench.measure import MILLISECONDS, RATIOS
from bench.ops import NAMES as OP_NAMES
from bench.record import THREADS, Figures, Record, figures, joined

DISTURBED = 150  # preemptions a second: the kernel's threads make about 100, a busy process on two cores over 200
TORCH_CAPABILITY = {"avx512": "avx512", "avx2": "avx2", "plain": "default"}


class DisagreementError(Exception):
    """A workload could not be measured: results disagree, or something raised."""


class Settings(NamedTuple):
    """What all processes of a run share.

    Attributes:
        threads: of everybody. allocator: a name of heap.ALLOCATORS. target: instruction set, of torch as well.
    """

    threads: int = THREADS
    allocator: str = "default"
    target: str = machine.instruction_set()

    def environment(self) -> dict[str, str]:
        """Environment of the processes: this one's, but for what would change the figures."""
        variables = heap.environment(self.allocator) | {"OMP_NUM_THREADS": str(self.threads)}
        if self.target != machine.instruction_set():  # else torch knows best
            variables["ATEN_CPU_CAPABILITY"] = TORCH_CAPABILITY[self.target]
            # The compiler's cache would hand out code made for wider vectors, which then skips half of the numbers.
            variables["TORCHINDUCTOR_CACHE_DIR"] = str(machine.ROOT / "build" / f"inductor-{self.target}")
        return variables

    def machine(self) -> dict[str, Any]:
        """Description of the machine as those processes will see it."""
        return machine.describe(self.target) | {"threads": self.threads, "allocator": self.allocator}


def run(names: list[str], settings: Settings) -> Record:
    """Measure workloads, printing a line for each.

    Args:
        names: workloads, "op/workload".
        settings: of the processes.

    Returns:
        One record; empty, {}, when every workload was skipped.

    Raises:
        DisagreementError: a workload failed.
    """
    runs = []
    for name in names:
        record, remark = _run_one(name, settings)
        print(f"{name:40}", summary(figures(record)[name]) if record else remark, flush=True)
        if record:
            runs.append(record)
    return joined(runs) if runs else {}


def summary(measured: Figures) -> str:
    """Our time, and the ratios of medians, on one line."""
    parts = []
    for ours, ratios in measured[RATIOS].items():
        times = ", ".join(f"{peer} {ratio['medians']:.3g}x" for peer, ratio in ratios.items())
        parts.append(f"{ours} {measured[MILLISECONDS][ours]['median']:.3g} ms: {times}")
    if any(_disturbed(runs) for runs in measured[MILLISECONDS].values()):
        parts.append("NOT QUIET: other processes took the cores")
    return "; ".join(parts)


def _disturbed(runs: dict[str, float]) -> bool:
    return runs["preemptions"] > max(1, DISTURBED * runs["median"] / 1e3)


def smoke(settings: Settings) -> int:
    """Run every workload once, small, in one process; the exit status of pytest."""
    return _pytest(["bench/suites", "--smoke"], settings, capture=False).returncode


def _run_one(name: str, settings: Settings) -> tuple[Record, str]:
    """The run of one workload, or {} and why it was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        suite = "test_ops.py" if name in OP_NAMES else "test_volume.py"
        target = f"bench/suites/{suite}::test[{name}]"
        # The compiler's own imports warn; so does pytest-benchmark when a workload is skipped.
        done = _pytest(
            [target, "-rs", "-Wdefault", "--show-capture=no", f"--benchmark-json={path}"], settings, capture=True
        )
        if done.returncode:
            raise DisagreementError(f"{name} cannot be measured:\n{done.stdout}{done.stderr}")
        record: Record = json.loads(path.read_text(encoding="utf-8")) if path.exists() and path.stat().st_size else {}
    skipped = re.search(r"SKIPPED \[\d+\] \S+ (.*)", done.stdout)
    return (
        (record, "") if record.get("benchmarks") else ({}, f"skipped: {skipped[1] if skipped else 'no reason given'}")
    )


def _pytest(arguments: list[str], settings: Settings, *, capture: bool) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:cov"]
    command += [f"--target={settings.target}", *arguments]
    return subprocess.run(
        command, cwd=machine.ROOT, env=settings.environment(), capture_output=capture, text=True, check=False
    )
