"""Recorded runs: bench/results/<machine>.jsonl, one JSON object a line.

The first line holds `machine`, `datetime` and the number of lines that follow. A line with `step` is a step of
`make gpu`: whether it passed, seconds, the end of its output. Every other line is one benchmark: what bench/measure.py
says of it, and the commit that it was measured at.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.machine import ROOT, cpu, record_name
from smile_runtime.io.files import atomic_path

RESULTS = ROOT / "bench" / "results"
THREADS = 2  # of everybody: goals and the README's table are for so many
Figures = dict[str, Any]
"""What is recorded of one benchmark, beside its name: see `bench.measure.figures`."""


class NoRecordError(Exception):
    """There is no run to compare with."""


@dataclass(frozen=True)
class Record:
    """What was measured on one machine.

    Attributes:
        machine: what the figures may depend on.
        datetime: ISO 8601, when the last of them was taken.
        benchmarks: figures by "op/workload", in the order in which they were taken.
        steps: of `make gpu`, by name: `passed`, `seconds`, `tail`.
    """

    machine: dict[str, Any]
    datetime: str
    benchmarks: dict[str, Figures] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def merged(self, newer: "Record") -> "Record":
        """Take over a newer run: what it did not measure stays, if nothing about the machine has changed."""
        if self.machine != newer.machine:
            return newer
        return replace(newer, benchmarks=_put(self.benchmarks, newer.benchmarks), steps=_put(self.steps, newer.steps))


def _put(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in old.items() if name not in new} | new


def now() -> str:
    """The time of a record that is written now."""
    return datetime.now(UTC).isoformat()


def selected(names: list[str], patterns: str) -> list[str]:
    """Names "op/workload" that a comma-separated list asks for: an op, or a pattern of names; "" asks for all."""
    wanted = [pattern for pattern in patterns.split(",") if pattern]
    found = [
        name
        for name in names
        if not wanted or any(fnmatch(name, pattern) or name.split("/")[0] == pattern for pattern in wanted)
    ]
    if not found:
        raise ValueError(f"no workload is called {patterns!r}; there are {', '.join(names)}")
    return found


def path_of(machine: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Where the runs of a machine are kept."""
    return folder / f"{record_name(machine)}.jsonl"


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        NoRecordError: there is none.
        ValueError: lines are missing, or are there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NoRecordError(f"{path.name}: there is no record of this machine; make bench writes it") from None
    head, *lines = (json.loads(line) for line in text.splitlines())
    steps = {line.pop("step"): line for line in lines if "step" in line}
    benchmarks = {line["name"]: line for line in lines if "name" in line}
    if not len(steps) + len(benchmarks) == len(lines) == head["lines"]:
        raise ValueError(f"{path}: {head['lines']} lines were recorded, {len(lines)} are there; take it from git again")
    return Record(head["machine"], head["datetime"], benchmarks, steps)


def write(record: Record, path: Path) -> None:
    """Write a record, as a whole or not at all."""
    lines: list[dict[str, Any]] = [{"step": name, **step} for name, step in record.steps.items()]
    lines += record.benchmarks.values()
    head = {"machine": record.machine, "datetime": record.datetime, "lines": len(lines)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished:
        unfinished.write_text(
            "".join(json.dumps(line, allow_nan=False) + "\n" for line in (head, *lines)), encoding="utf-8"
        )


def save(run: Record, folder: Path = RESULTS) -> Path:
    """Put a run into its machine's record."""
    path = path_of(run.machine, folder)
    write(read(path).merged(run) if path.exists() else run, path)
    return path


def commits(measured: Iterable[Figures]) -> str:
    """What was measured: "commit abc", or several, and whether the checkout held what no commit holds."""
    found = {(one["commit"], one["dirty"]) for one in measured}
    remarks = {False: "", True: ", with uncommitted changes"}
    return "; ".join(f"commit {commit}{remarks[dirty]}" for commit, dirty in sorted(found))


def recorded(folder: Path = RESULTS) -> dict[str, Record]:
    """All records, by machine."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.jsonl"))}


def newest(folder: Path = RESULTS, allocator: str = "default") -> tuple[str, Record]:
    """Find the newest record of a CPU under an allocator's setting, this CPU's if it has one.

    Only runs with the machine's best instruction set on THREADS threads count: what others give is for those who ask.

    Raises:
        NoRecordError: there is none.
    """
    wanted = {"device": "cpu", "allocator": allocator, "threads": THREADS}
    found = []
    for name, record in recorded(folder).items():
        machine = record.machine
        best = machine.get("instruction set") == machine.get("best instruction set")
        if best and all(machine.get(key) == value for key, value in wanted.items()):
            found.append((machine["cpu"] == cpu(), datetime.fromisoformat(record.datetime), name, record))
    if not found:
        raise NoRecordError(
            f"no run is recorded with the allocator setting {allocator!r}, {THREADS} threads and a machine's best "
            "instruction set; make bench writes one"
        )
    *_, name, record = max(found, key=lambda entry: entry[:3])
    return name, record
