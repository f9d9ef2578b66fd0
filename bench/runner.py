"""Runs workloads, each in a process of its own: what one leaves in the heap changes the page faults of the next."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bench import allocators, catalogue, machine
from bench.comparison import CPU, CUDA
from bench.data_path.names import LEFT_OUT
from bench.measure import COSTS, MILLISECONDS, RATIOS
from bench.records import THREADS, Figures, Record

DISTURBED = 150  # preemptions a second: the kernel's threads make about 100, a busy process on two cores over 200
TORCH_CAPABILITY = {"avx512": "avx512", "avx2": "avx2", "plain": "default"}
TESTS = {CPU: "test", CUDA: "test_gpu"}


class DisagreementError(Exception):
    """A workload could not be measured: results disagree, or something raised."""


class Settings(NamedTuple):
    """What all processes of a run share.

    Attributes:
        threads: of everybody. allocator: a name of allocators.ALLOCATORS. target: instruction set, of torch as well.
    """

    threads: int = THREADS
    allocator: str = "default"
    target: str = machine.instruction_set()

    def environment(self) -> dict[str, str]:
        """Environment of the processes: this one's, but for what would change the figures."""
        variables = allocators.environment(self.allocator) | {"OMP_NUM_THREADS": str(self.threads)}
        if self.target != machine.instruction_set():  # else torch knows best
            variables["ATEN_CPU_CAPABILITY"] = TORCH_CAPABILITY[self.target]
            # The compiler's cache would hand out code made for wider vectors, which then skips half of the numbers.
            variables["TORCHINDUCTOR_CACHE_DIR"] = str(machine.ROOT / "build" / f"inductor-{self.target}")
        return variables

    def machine(self) -> dict[str, Any]:
        """Description of the machine as those processes will see it."""
        return machine.describe(self.target) | {"threads": self.threads, "allocator": self.allocator}


def run(names: list[str], settings: Settings) -> Record | None:
    """Measure workloads on the CPU, printing a line for each.

    Args:
        names: workloads, "op/workload".
        settings: of the processes.

    Returns:
        One record; None when every workload was skipped.

    Raises:
        DisagreementError: a workload failed.
    """
    measured = None
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.json"
            done = _pytest(arguments(name, CPU, path), settings, capture=True, more=catalogue.environment(name))
            if done.returncode:
                raise DisagreementError(f"{name} cannot be measured:\n{done.stdout}{done.stderr}")
            one = record_of(path)
        print(f"{name:40}", summary(one.benchmarks[name]) if one else why_skipped(done.stdout), flush=True)
        if one:
            measured = replace(one, benchmarks=measured.benchmarks | one.benchmarks) if measured else one
    return measured


def arguments(name: str, device: str, path: Path) -> list[str]:
    """Arguments of pytest that measure one workload and write pytest-benchmark's JSON."""
    # The compiler's own imports warn; so does pytest-benchmark when a workload is skipped.
    options = ["-rs", "-Wdefault", "--show-capture=no", f"--device={device}", f"--benchmark-json={path}"]
    return [f"bench/suites/test_workloads.py::{TESTS[device]}[{name}]", *options]


def record_of(path: Path) -> Record | None:
    """The record of the process that wrote pytest-benchmark's JSON; None when its workload was skipped."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() and path.stat().st_size else {}
    if not content.get("benchmarks"):
        return None
    benchmarks = [benchmark["extra_info"] | content["commit_info"] for benchmark in content["benchmarks"]]
    return Record(content["machine_info"], content["datetime"], {one["name"]: one for one in benchmarks})


def why_skipped(output: str) -> str:
    """What pytest's output says of a workload that was skipped."""
    skipped = re.search(r"SKIPPED \[\d+\] \S+ (.*)", output)
    return f"skipped: {skipped[1] if skipped else 'no reason given'}"


def summary(measured: Figures) -> str:
    """Our time and the ratios of medians, or what else was measured, on one line."""
    parts = []
    for ours, ratios in measured[RATIOS].items():
        times = ", ".join(f"{peer} {ratio['medians']:.3g}x" for peer, ratio in ratios.items())
        parts.append(f"{ours} {measured[MILLISECONDS][ours]['median']:.3g} ms: {times}")
    if not parts:
        parts = [f"{name} {value:.4g}" for name, value in measured.get(COSTS, {}).items()]
    parts += [f"left out: {peer}, {why}" for peer, why in measured.get(LEFT_OUT, {}).items()]
    if any(_disturbed(runs) for runs in measured[MILLISECONDS].values()):
        parts.append("NOT QUIET: other processes took the cores")
    return "; ".join(parts)


def _disturbed(runs: dict[str, float]) -> bool:
    return runs.get("preemptions", 0) > max(1, DISTURBED * runs["median"] / 1e3)


def smoke(settings: Settings) -> int:
    """Run every workload once, small, in one process; the exit status of pytest."""
    return _pytest(["bench/suites", "--smoke"], settings, capture=False).returncode


def command(more: list[str]) -> list[str]:
    """How pytest runs the suites."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:cov", *more]


def _pytest(
    arguments: list[str], settings: Settings, *, capture: bool, more: Mapping[str, str] = MappingProxyType({})
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command([f"--target={settings.target}", *arguments]),
        cwd=machine.ROOT,
        env=settings.environment() | dict(more),
        capture_output=capture,
        text=True,
        check=False,
    )
