"""One case, converted by whoever finds it first: a lock of the kernel is all that the processes share."""

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from smile_fast.data.arrays import array_name, verify_array, write_array
from smile_fast.data.case_info import IMAGE, LABELS
from smile_fast.data.folder_lock import locked
from smile_fast.data.preparing.case_record import CaseRecord, Wanted, read_case, write_broken
from smile_fast.data.preparing.conversion import Converted, convert, refuse_shortage
from smile_fast.data.preparing.fingerprint import Fingerprint
from smile_fast.data.store import BROKEN_FILE, CASE_FILE, SCHEMA
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason

_TEMPORARY = ".tmp-*"


@dataclass(frozen=True)
class Job:
    """A case to be converted unless it is there.

    Attributes:
        wanted: the case.
        again: convert it even if it is up to date.
        rehash: read its sources and arrays whatever their looks say.
        before: `identity` of its case.json when this call began: of another one, somebody has converted it since.
    """

    wanted: Wanted
    again: bool = False
    rehash: bool = False
    before: tuple[int, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: its name.
        kind: converted now, kept, at work in another process, or broken.
        problem: of a broken case, one sentence.
        sources: SHA-256 of the files that a converted or kept case was made from.
    """

    case: str
    kind: Literal["converted", "kept", "busy", "broken"]
    problem: str = ""
    sources: dict[str, str] = field(default_factory=dict)


def identity(folder: Path) -> tuple[int, int] | None:
    """Tells one case.json from the next; None if there is none."""
    try:
        status = os.stat(folder / CASE_FILE)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def kept(job: Job) -> Outcome | None:
    """That a case is kept, if it is up to date by the looks of its files: nothing but case.json is read."""
    if job.rehash or _is_forced(job):
        return None
    record, seen = read_case(job.wanted), job.wanted.look()
    return None if record is None or not seen or _unsure(record, seen) else _as_it_is(record)


def needs_room(job: Job) -> bool:
    """Whether a case will take room on the disk: not if what is there may well be of sources that were only touched."""
    record, seen = read_case(job.wanted), job.wanted.look()
    return (
        job.again
        or record is None
        or any(file not in record.seen or record.seen[file].size != look.size for file, look in seen.items())
    )


def looks_done(wanted: Wanted) -> bool:
    """Whether a case is up to date as far as can be told without reading its sources."""
    record, seen = read_case(wanted), wanted.look()
    return (
        record is not None
        and bool(seen)
        and all(file in record.seen and record.seen[file].looks_like(look) for file, look in seen.items())
    )


def current(wanted: Wanted) -> Outcome | None:
    """That a case is kept, if it is up to date, by the content of its sources where their looks do not suffice.

    Raises:
        InputError: see `Wanted.look`.
    """
    record, seen = read_case(wanted), wanted.look()
    if record is None or not seen or not _is_made_from(record, wanted, _unsure(record, seen)):
        return None
    return _as_it_is(record)


def prepare_case(job: Job) -> Outcome:
    """Check and convert a case, unless it is up to date or another process is at it.

    What is wrong with the case is an outcome.

    Raises:
        InputError: the store cannot be written, or a disk, the network or the like fails.
        MemoryError: there is too little.
    """
    name, folder = job.wanted.case.name, job.wanted.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                alone = stack.enter_context(locked(folder))
            except InputError:
                return Outcome(name, "busy")
            if alone:
                for leftover in folder.glob(_TEMPORARY):  # of a call that was killed
                    leftover.unlink()
            return _prepare_alone(job)
    except InputError as error:
        refuse_shortage(error, folder)
        raise
    except OSError as error:
        refuse_shortage(error, folder)
        raise InputError(f"{folder}: cannot be written ({reason(error)}); make it writable") from error


def _prepare_alone(job: Job) -> Outcome:
    """Do what `prepare_case` says, while no other process is at the case."""
    wanted = job.wanted
    name, seen = wanted.case.name, wanted.look()
    try:
        if not _is_forced(job) and (as_it_is := _keep(job, seen)):
            return as_it_is
        converted = convert(wanted.case, wanted.dataset, wanted.states)
    except InputError as error:
        refuse_shortage(error, wanted.folder)
        problem = str(error)
        problem = problem if name in problem else f"case {name}: {problem}"
        write_broken(wanted, problem, seen)
        return Outcome(name, "broken", problem)
    _write(wanted, converted, seen)
    return Outcome(name, "converted", sources=converted.info.sources)


def _keep(job: Job, seen: dict[str, Fingerprint]) -> Outcome | None:
    """That a case is kept, if it is up to date; notes how its sources look if they had to be read."""
    wanted, record = job.wanted, read_case(job.wanted)
    if record is None or not seen or (job.rehash and not _arrays_are_whole(wanted, record)):
        return None
    unsure = list(seen) if job.rehash else _unsure(record, seen)
    if not _is_made_from(record, wanted, unsure):
        return None
    if unsure:
        replace(record, seen=seen).write(wanted.folder)
    return _as_it_is(record)


def _as_it_is(record: CaseRecord) -> Outcome:
    return Outcome(record.case.name, "kept", sources=record.case.sources)


def _write(wanted: Wanted, converted: Converted, seen: dict[str, Fingerprint]) -> None:
    folder = wanted.folder
    arrays = {
        IMAGE: write_array(folder, IMAGE, converted.image),
        LABELS: write_array(folder, LABELS, converted.labels),
    }
    record = CaseRecord(
        schema=SCHEMA,
        organs=wanted.dataset.organs,
        ignore=wanted.dataset.ignore,
        case=replace(converted.info, arrays=arrays),
        range_hu=converted.range_hu,
        warnings=converted.warnings,
        padding=None if converted.padding is None else converted.padding.to_json(),
        sizes={array: os.stat(folder / array_name(array, digest)).st_size for array, digest in arrays.items()},
        seen=seen,
    )
    record.write(folder)  # last: it vouches for the arrays
    with suppress(FileNotFoundError):
        os.unlink(folder / BROKEN_FILE)


def _is_forced(job: Job) -> bool:
    return job.again and identity(job.wanted.folder) == job.before


def _unsure(record: CaseRecord, seen: dict[str, Fingerprint]) -> list[str]:
    """The sources whose looks do not say that they are those of the record."""
    return [file for file, look in seen.items() if file not in record.seen or not record.seen[file].vouches_for(look)]


def _is_made_from(record: CaseRecord, wanted: Wanted, sources: list[str]) -> bool:
    found = wanted.hash(sources)
    return all(digest is not None and digest == record.case.sources.get(source) for source, digest in found.items())


def _arrays_are_whole(wanted: Wanted, record: CaseRecord) -> bool:
    try:
        for array, digest in record.case.arrays.items():
            verify_array(wanted.folder / array_name(array, digest), digest)
    except InputError as error:
        refuse_shortage(error, wanted.folder)
        return False
    return True
