"""Runs the steps of `make gpu`, each a process of its own, and keeps what they found after every one of them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import records, runner
from bench.commands.workloads import NAMES as COMMANDS
from bench.comparison import CUDA
from bench.machine import ROOT, TOOLKIT
from bench.records import Record

TAIL = 40  # lines
BENCHMARK_SECONDS = 400
LEAST_SECONDS = 5.0  # a step that has less is not begun


class Steps:
    """Runs steps and keeps what they found: in the file, after every one of them.

    Attributes:
        record: of this machine. paths: where it is written. commit: of the checkout.
        left_out: steps that there was no time for.
    """

    def __init__(self, found: dict[str, Any], commit: dict[str, Any], folder: Path) -> None:
        """Go on with the record of this machine; steps of another commit say nothing any more.

        Args:
            found: the machine. commit: of the checkout. folder: of the records.
        """
        self.commit = commit
        self._deadline = float("inf")
        self.left_out: list[str] = []
        name = records.path_of(found, folder).name
        self.paths = [folder / name, *([Path(os.environ["OUT"]) / name] if os.environ.get("OUT") else [])]
        self.record = Record(found, records.now())
        if self.paths[0].exists():
            self.record = records.read(self.paths[0]).merged(self.record)
        same = {key: step for key, step in self.record.steps.items() if commit.items() <= step.items()}
        self.record = replace(self.record, steps=same)

    def begin(self, seconds: float) -> None:
        """Give all that follows so much time."""
        self._deadline = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """How much of that time is left."""
        return self._deadline - time.monotonic()

    def save(self, **more: dict[str, Any]) -> None:
        """Add steps or benchmarks, and write the file as a whole or not at all."""
        self.record = self.record.merged(Record(self.record.machine, records.now(), **more))
        for path in self.paths:
            records.write(self.record, path)

    def step(self, name: str, command: list[str], timeout: float, environment: dict[str, str] | None = None) -> bool:
        """Run a command, keep the end of its output, say how it went; or leave it out where time is up."""
        left = self.seconds_left
        if left < LEAST_SECONDS:
            print(f"later  {name}: the time of this part is up; run it again", flush=True)
            self.left_out.append(name)
            return False
        print(f"...    {name}", flush=True)
        started = time.monotonic()
        passed, output = run(command, min(timeout, left), environment or {})
        seconds = round(time.monotonic() - started, 1)
        tail = output.splitlines()[-TAIL:]
        print(f"{'ok    ' if passed else 'FAILED'} {name} ({seconds} s)", flush=True)
        if not passed:
            print("\n".join(tail), flush=True)
        self.save(steps={name: {"passed": passed, "seconds": seconds, "tail": tail, **self.commit}})
        return passed

    def benchmarks(self, names: list[str]) -> None:
        """Measure workloads; those that this commit has no figures of come first."""
        for name in sorted(names, key=self._measured):
            self.benchmark(name)

    def _measured(self, name: str) -> bool:
        return self.commit.items() <= self.record.benchmarks.get(name, {}).items()

    def benchmark(self, name: str) -> None:
        """Measure one workload in a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.json"
            whole = name in COMMANDS
            command = [sys.executable, "-m", "bench.commands", name, str(path)]
            if not self.step(
                name, command if whole else runner.command(runner.arguments(name, CUDA, path)), BENCHMARK_SECONDS
            ):
                return
            measured = records.read(path) if whole else runner.record_of(path)
            if measured:
                print(f"       {runner.summary(measured.benchmarks[name])}", flush=True)
                self.save(benchmarks=measured.benchmarks)


def run(command: list[str], timeout: float, environment: dict[str, str]) -> tuple[bool, str]:
    """Run a command with all its children; whether it succeeded in time, and its output."""
    full = {
        **os.environ,
        "PATH": f"{os.environ.get('PATH', '')}:{TOOLKIT}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=full, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return False, str(error)
        note = ""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            note = f"\nstopped after {timeout:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: the group has its number
                process.wait()
        output.seek(0)
        return process.returncode == 0 and not note, output.read() + note
