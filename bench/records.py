"""Recorded runs: bench/results/<machine>.jsonl of a CPU, bench/results/<gpu>.json of a GPU.

A CPU's is one JSON object a line: first `machine`, `datetime` and the number of lines that follow, then a line a
benchmark: what bench/measure.py says of it, and the commit that it was measured at. A GPU's is one JSON object with
`machine`, `datetime`, the same `benchmarks` by name, and the `steps` of `make gpu`: whether they passed, seconds, the
end of their output. It is checked when it is read, since parts of it come back from other machines.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.machine import ROOT, record_name
from smile_runtime.io.files import atomic_path

RESULTS = ROOT / "bench" / "results"
THREADS = 2  # of everybody: goals and the README's table are for so many
Figures = dict[str, Any]
"""What is recorded of one benchmark, beside its name: see `bench.measure.figures`."""


REMARK = "remark"  # of figures: how they were taken, where that was not as usual
FORMAT = "GPU record, 1"  # tells a GPU's record from other JSON beside it


class NoRecordError(Exception):
    """There is no run to compare with."""


class BrokenRecordError(ValueError):
    """A record is not whole."""


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

    def remarked(self, remark: str) -> "Record":
        """The same, with something said of every figure; the table and the goals say it, too."""
        if not remark:
            return self
        return replace(self, benchmarks={name: one | {REMARK: remark} for name, one in self.benchmarks.items()})


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
    return folder / f"{record_name(machine)}.{'json' if machine['device'] == 'cuda' else 'jsonl'}"


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        NoRecordError: there is none.
        BrokenRecordError: lines are missing, or are there twice; a GPU's record lacks what a table or a goal needs.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NoRecordError(f"{path.name}: there is no record of this machine; make bench writes it") from None
    try:
        if path.suffix == ".json":
            return _of_document(json.loads(text), path)
        head, *lines = (json.loads(line) for line in text.splitlines())
    except json.JSONDecodeError as error:
        raise BrokenRecordError(f"{path}: is no JSON ({error}); take it from git again") from None
    benchmarks = {line["name"]: line for line in lines}
    if not len(benchmarks) == len(lines) == head["lines"]:
        raise BrokenRecordError(
            f"{path}: {head['lines']} lines were recorded, {len(lines)} are there; take it from git again"
        )
    return Record(head["machine"], head["datetime"], benchmarks)


def write(record: Record, path: Path) -> None:
    """Write a record, as a whole or not at all."""
    if path.suffix == ".json":
        text = _document(record)
    else:
        lines = list(record.benchmarks.values())
        head = {"machine": record.machine, "datetime": record.datetime, "lines": len(lines)}
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in (head, *lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _document(record: Record) -> str:
    """A GPU's record, every step and every benchmark on a line of its own, as a difference shows them."""

    def lines(rows: dict[str, Any]) -> str:
        return ",\n".join(f"  {json.dumps(name)}: {json.dumps(row, allow_nan=False)}" for name, row in rows.items())

    head = {"format": FORMAT, "machine": record.machine, "datetime": record.datetime}
    parts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    parts += [
        f" {json.dumps(name)}: {{\n{lines(rows)}\n }}"
        for name, rows in (("steps", record.steps), ("benchmarks", record.benchmarks))
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _of_document(content: Any, path: Path) -> Record:
    """A GPU's record from its JSON, checked."""
    for fault in _faults(content):
        raise BrokenRecordError(f"{path}: {fault}; take it from git again, or measure again")
    return Record(content["machine"], content["datetime"], content["benchmarks"], content["steps"])


def _faults(content: Any) -> Iterator[str]:
    """What is wrong with the JSON of a GPU's record, one clause each."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        yield f"is no record of the format {FORMAT!r}"
        return
    for key in ("machine", "steps", "benchmarks"):
        if not isinstance(content.get(key), dict):
            yield f"{key} is missing"
            return
    if content["machine"].get("device") != "cuda" or not isinstance(content["machine"].get("gpu"), str):
        yield "machine does not name a GPU"
    try:
        datetime.fromisoformat(content.get("datetime"))
    except (TypeError, ValueError):
        yield f"datetime {content.get('datetime')!r} is no date"
    for name, step in content["steps"].items():
        if not isinstance(step, dict) or not isinstance(step.get("passed"), bool) or "commit" not in step:
            yield f"step {name!r} does not say whether it passed, or at which commit"
    for name, figures in content["benchmarks"].items():
        yield from (f"{name}: {fault}" for fault in _faults_of(name, figures))


def _faults_of(name: str, figures: Any) -> Iterator[str]:
    """What is wrong with the figures of one benchmark on a GPU."""
    if not isinstance(figures, dict) or figures.get("name") != name:
        yield "goes by another name"
        return
    for key in ("errors", "milliseconds", "peer / ours"):
        if not isinstance(figures.get(key), dict):
            yield f"{key} is missing"
            return
    if not isinstance(figures.get("commit"), str) or not isinstance(figures.get("dirty"), bool):
        yield "does not say at which commit it was measured"
    times = figures["milliseconds"]
    for who, taken in times.items():
        if not all(_positive(taken.get(key, 1)) for key in ("median", "minimum")) or "median" not in taken:
            yield f"the time of {who!r} is no number of milliseconds"
    for ours, peers in figures["peer / ours"].items():
        yield from (f"{who!r} has a ratio and no time" for who in (ours, *peers) if who not in times)
    for cost, value in figures.get("costs", {}).items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            yield f"{cost!r} is no number"


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def save(run: Record, folder: Path = RESULTS) -> Path:
    """Put a run into its machine's record."""
    path = path_of(run.machine, folder)
    write(read(path).merged(run) if path.exists() else run, path)
    return path


def commits(measured: Iterable[Figures]) -> str:
    """What was measured: "commit abc", or several, and what the checkout held that no commit holds."""
    return "; ".join(sorted({f"commit {commit_of(one)}" for one in measured}))


def remarks(measured: Iterable[Figures]) -> str:
    """What is said of some of the figures, as "; REMARK" behind their commits; mostly nothing."""
    return "".join(f"; {remark}" for remark in sorted({one[REMARK] for one in measured if REMARK in one}))


def commit_of(measured: Figures) -> str:
    """The commit of one benchmark or step; `changes`, where there are any, says what was changed since it."""
    if measured["dirty"]:
        return f"{measured['commit']}, with {measured.get('changes', 'uncommitted changes')}"
    return str(measured["commit"])


def recorded(folder: Path = RESULTS) -> dict[str, Record]:
    """All records, by machine."""
    found = [path for path in folder.glob("*.json") if _is_gpu_record(path)]
    return {path.stem: read(path) for path in sorted([*folder.glob("*.jsonl"), *found])}


def _is_gpu_record(path: Path) -> bool:
    """Whether it is, whole or broken, what `make gpu` writes; other tables have their JSON beside it."""
    return '"format": "GPU record' in path.read_text(encoding="utf-8", errors="replace")[:200]


def gpus(folder: Path = RESULTS) -> dict[str, Record]:
    """The records of GPUs, by machine."""
    return {name: record for name, record in recorded(folder).items() if record.machine["device"] == "cuda"}


def ranked(folder: Path = RESULTS, allocator: str = "default", *, first: str | None = None) -> list[tuple[str, Record]]:
    """The records of CPUs under an allocator's setting, by machine, the newest one first.

    Only runs with the machine's best instruction set on THREADS threads count: what others give is for those who ask.

    Args:
        folder: of the records.
        allocator: a name of allocators.ALLOCATORS.
        first: the CPU whose records come before all others.
    """
    wanted = {"device": "cpu", "allocator": allocator, "threads": THREADS}
    found = []
    for name, record in recorded(folder).items():
        machine = record.machine
        best = machine.get("instruction set") == machine.get("best instruction set")
        if best and all(machine.get(key) == value for key, value in wanted.items()):
            found.append((machine["cpu"] == first, datetime.fromisoformat(record.datetime), name, record))
    return [(name, record) for *_, name, record in sorted(found, key=lambda entry: entry[:3], reverse=True)]


def newest(
    folder: Path = RESULTS, allocator: str = "default", *, holding: Collection[str] | None = None
) -> tuple[str, Record]:
    """Find the newest record of a CPU under an allocator's setting, whoever asks for it.

    Args:
        folder: of the records.
        allocator: a name of allocators.ALLOCATORS.
        holding: workloads of which a record has to hold one; None for any record.

    Raises:
        NoRecordError: there is none.
    """
    for name, record in ranked(folder, allocator):
        if holding is None or any(workload in holding for workload in record.benchmarks):
            return name, record
    raise NoRecordError(
        f"no run is recorded with the allocator setting {allocator!r}, {THREADS} threads and a machine's best "
        "instruction set; make bench writes one"
    )
