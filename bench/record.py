"""Recorded runs: bench/results/<machine>.json, in pytest-benchmark's own format.

What is ours stands in each benchmark's extra_info: see bench/measure.py.
"""

import json
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.machine import ROOT, cpu, record_name
from smile_runtime.io.files import write_json

RESULTS = ROOT / "bench" / "results"
THREADS = 2  # of everybody: goals and the README's table are for so many
Record = dict[str, Any]
Figures = dict[str, Any]
"""extra_info of one benchmark."""


class NoRecordError(Exception):
    """There is no run to compare with."""


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
    return folder / f"{record_name(machine)}.json"


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        NoRecordError: there is none.
    """
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoRecordError(f"there is no record of this machine ({path.name}): make bench writes it") from None
    return record


def figures(record: Record) -> dict[str, Figures]:
    """What was measured, by workload."""
    return {benchmark["extra_info"]["name"]: benchmark["extra_info"] for benchmark in record["benchmarks"]}


def joined(runs: list[Record]) -> Record:
    """Make one record of the runs of single workloads; the last one says when, and on what."""
    benchmarks = []
    for run in runs:
        for benchmark in run["benchmarks"]:
            benchmark["extra_info"] |= {"commit": run["commit_info"]["id"], "dirty": run["commit_info"]["dirty"]}
            benchmarks.append(benchmark)
    return {**runs[-1], "benchmarks": benchmarks}


def commits(measured: dict[str, Figures]) -> str:
    """What was measured: "commit abc", or several, and whether the checkout held what no commit holds."""
    found = {(one["commit"], one["dirty"]) for one in measured.values()}
    remarks = {False: "", True: ", with uncommitted changes"}
    return "; ".join(f"commit {commit}{remarks[dirty]}" for commit, dirty in sorted(found))


def updated(old: Record | None, new: Record) -> Record:
    """Put a run into the machine's record: workloads that it did not measure stay if nothing else has changed."""
    if old is None or old["machine_info"] != new["machine_info"]:
        return new
    fresh = figures(new)
    kept = [benchmark for benchmark in old["benchmarks"] if benchmark["extra_info"]["name"] not in fresh]
    return {**new, "benchmarks": [*kept, *new["benchmarks"]]}


def save(run: Record, folder: Path = RESULTS) -> Path:
    """Put a run into its machine's record."""
    path = path_of(run["machine_info"], folder)
    old = read(path) if path.exists() else None
    write_json(path, updated(old, run))
    return path


def newest(folder: Path = RESULTS, allocator: str = "default") -> tuple[str, Record]:
    """Find the newest record of a CPU under an allocator's setting, this CPU's if it has one.

    Only runs with the machine's best instruction set on THREADS threads count: what others give is for those who ask.

    Raises:
        NoRecordError: there is none.
    """
    wanted = {"device": "cpu", "allocator": allocator, "threads": THREADS}
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        machine = record.get("machine_info", {}) if isinstance(record, dict) else {}
        best = machine.get("instruction set") == machine.get("best instruction set")
        if best and all(machine.get(key) == value for key, value in wanted.items()):
            found.append((machine["cpu"] == cpu(), datetime.fromisoformat(record["datetime"]), path.stem, record))
    if not found:
        raise NoRecordError(
            f"no run is recorded with the allocator setting {allocator!r}, {THREADS} threads and a machine's best "
            "instruction set: make bench writes one"
        )
    *_, name, record = max(found, key=lambda entry: entry[:3])
    return name, record
