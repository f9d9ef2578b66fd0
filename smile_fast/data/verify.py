"""Reading every byte of a store to make sure that it is what was written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from smile_fast.data.arrays import Layout, array_name, read_slices, verify_array
from smile_fast.data.case_info import LABELS, CaseInfo, gather_counts
from smile_fast.data.folder_lock import reading
from smile_fast.data.preparing.case_record import CaseRecord
from smile_fast.data.processes import run_jobs, worker_number
from smile_fast.data.store import BROKEN_FILE, CASE_FILE, CASES, DTYPES, INDEX, QUARANTINE, SCHEMA, Store
from smile_fast.records import read_record
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.progress import progress
from smile_runtime.volume.histograms import slice_histograms

T = TypeVar("T")

_AGAIN = "run 'smile-fast prepare --rehash' again"
_TEMPORARY = ".tmp-"


@dataclass
class Verified:
    """What was read of a store or a run, and what is wrong with it.

    Attributes:
        files: files that were read. size: bytes of them.
        faults: a sentence each, which names the file and what to do.
        leftovers: files that nothing names; they harm nothing.
        newer: cases whose case.json is of a newer conversion than the index.
    """

    files: int = 0
    size: int = 0
    faults: list[str] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    newer: list[str] = field(default_factory=list)

    def add(self, other: "Verified") -> None:
        """Take over what was found elsewhere."""
        self.files += other.files
        self.size += other.size
        self.faults += other.faults
        self.leftovers += other.leftovers
        self.newer += other.newer

    def read(self, path: Path) -> None:
        """Count a file that was read."""
        self.files += 1
        self.size += path.stat().st_size

    def check(self, path: Path, read: Callable[[], T]) -> T | None:
        """Read a file; None, and a fault, if it is not what was written."""
        try:
            found = read()
            self.read(path)
        except InputError as error:
            self.faults.append(str(error))
            return None
        return found


def verify_store(path: Path, workers: int | None = None) -> Verified:
    """Read the index of a store, all that it names, and all that the folders of its cases name.

    Args:
        path: the store.
        workers: processes; by default one a CPU. 1 stays in this process.

    Raises:
        InputError: there is no store, its index cannot be used, another process prepares it now, or `workers` is no
            number of processes.
    """
    number = worker_number(workers)
    try:
        with reading(path):
            return _verify(path, number)
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({reason(error)}); make it readable") from error


def _verify(path: Path, workers: int) -> Verified:
    store = Store.open(path)
    found = Verified()
    found.read(path / INDEX)
    if (path / QUARANTINE).exists():
        _check_record(found, path / QUARANTINE, dict)
    found.leftovers += _unknown(path, {INDEX, QUARANTINE, CASES})
    folders = {folder.name for folder in (path / CASES).glob("*") if folder.is_dir()}
    jobs = [_Job(path / CASES / name, store.cases.get(name)) for name in sorted(folders | set(store.cases))]
    done = run_jobs(_verify_case, jobs, workers, advice="run it again with fewer --workers")
    for case in progress(done, total=len(jobs), label="verifying cases"):
        found.add(case)
    found.faults.sort()
    return found


@dataclass(frozen=True)
class _Job:
    folder: Path  # of the case
    info: CaseInfo | None  # as the index has it, if it does


def _verify_case(job: _Job) -> Verified:
    found, folder = Verified(), job.folder
    infos = [] if job.info is None else [job.info]
    if job.info is not None or (folder / CASE_FILE).exists():
        record = _check_record(found, folder / CASE_FILE, CaseRecord)
        if record is not None and record.case != job.info:
            infos.append(record.case)
            found.newer.append(folder.name)
    if (folder / BROKEN_FILE).exists():
        _check_record(found, folder / BROKEN_FILE, dict)
    files = {
        array_name(array, digest): (array, digest, info)
        for info in reversed(infos)  # of an array that both name the index says what it shows
        for array, digest in info.arrays.items()
    }
    for name, (array, digest, info) in files.items():
        path, layout = folder / name, (DTYPES[array], info.shape)
        whole = found.check(path, partial(_whole, path, digest, layout))
        if whole and array == LABELS and info is job.info:
            found.faults += _wrong_counts(path, info)
    if folder.is_dir():
        found.leftovers += _unknown(folder, {CASE_FILE, BROKEN_FILE, *files})
    return found


def _check_record(found: Verified, path: Path, kind: type[T]) -> T | None:
    """Read a sealed record of the store."""
    return found.check(path, lambda: read_record(path, kind, SCHEMA, _AGAIN))


def _whole(path: Path, digest: str, layout: Layout) -> bool:
    verify_array(path, digest, layout=layout)
    return True


def _wrong_counts(path: Path, info: CaseInfo) -> Iterable[str]:
    """Compare the labels with what the index says of them: what training sees of a case without reading it."""
    counts = slice_histograms(read_slices(path, info.arrays[LABELS]))[:, 1 : len(info.states) + 1]
    counts[:, [state is State.HIDDEN for state in info.states.values()]] = 0
    if gather_counts(counts, tuple(info.states)) != info.runs:
        yield f"{path}: shows other numbers of voxels than the index says; run 'smile-fast prepare --force'"


def _unknown(folder: Path, known: set[str]) -> list[Path]:
    """What is in a folder beside what is known, and beside locks and marks, whose names begin with a dot."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name not in known and (not path.name.startswith(".") or path.name.startswith(_TEMPORARY))
    ]
