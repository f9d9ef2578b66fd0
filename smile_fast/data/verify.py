"""Reading every byte of a store to make sure that it is what was written."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smile_fast.data.arrays import array_name, read_slices, verify_array
from smile_fast.data.case_info import LABELS, CaseInfo, gather_counts
from smile_fast.data.folder_lock import shared
from smile_fast.data.preparing.case_record import BROKEN_FILE, CaseRecord
from smile_fast.data.processes import run_jobs
from smile_fast.data.store import CASE_FILE, CASES, DTYPES, INDEX, QUARANTINE, SCHEMA, Store
from smile_fast.records import read_record
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.progress import progress
from smile_runtime.threads import usable_cpus
from smile_runtime.volume.histograms import slice_histograms

_AGAIN = "run 'smile-fast prepare --rehash' again"
_TEMPORARY = ".tmp-"


@dataclass
class Verified:
    """What was read, and what is wrong with it.

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

    def record(self, path: Path, kind: type[Any], remedy: str) -> Any:
        """Read a sealed record; None, and a fault, if it is not what was written."""
        try:
            found = read_record(path, kind, SCHEMA, remedy)
        except InputError as error:
            self.faults.append(str(error))
            return None
        self.read(path)
        return found

    def array(self, path: Path, digest: str, array: str, info: CaseInfo) -> bool:
        """Read the file of an array; False, and a fault, if it is not what was written."""
        try:
            verify_array(path, digest, layout=(DTYPES[array], info.shape))
        except InputError as error:
            self.faults.append(str(error))
            return False
        self.read(path)
        return True


def verify_store(path: Path, workers: int | None = None) -> Verified:
    """Read the index of a store, all that it names, and all that the folders of its cases name.

    Args:
        path: the store.
        workers: processes; by default one a CPU. 1 stays in this process.

    Raises:
        InputError: there is no store, its index cannot be used, another process prepares it now, or `workers` is no
            number of processes.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is not a number of processes; give 1 or more")
    try:
        with shared(path):
            return _verify(path, workers or usable_cpus())
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({reason(error)}); make it readable") from error


def _verify(path: Path, workers: int) -> Verified:
    store = Store.open(path)
    found = Verified()
    found.read(path / INDEX)
    if (path / QUARANTINE).exists():
        found.record(path / QUARANTINE, dict, _AGAIN)
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
        record = found.record(folder / CASE_FILE, CaseRecord, _AGAIN)
        if record is not None and record.case != job.info:
            infos.append(record.case)
            found.newer.append(folder.name)
    if (folder / BROKEN_FILE).exists():
        found.record(folder / BROKEN_FILE, dict, _AGAIN)
    files = {
        array_name(array, digest): (array, digest, info) for info in infos for array, digest in info.arrays.items()
    }
    whole = {name for name, (array, digest, info) in files.items() if found.array(folder / name, digest, array, info)}
    if job.info is not None and array_name(LABELS, job.info.arrays[LABELS]) in whole:
        found.faults += _wrong_counts(folder, job.info)
    if folder.is_dir():
        found.leftovers += _unknown(folder, {CASE_FILE, BROKEN_FILE, *files})
    return found


def _wrong_counts(folder: Path, info: CaseInfo) -> Iterable[str]:
    """Compare the labels with what the index says of them: what training sees of a case without reading it."""
    path = folder / array_name(LABELS, info.arrays[LABELS])
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
