"""A store's folder and the cohort that is made into it: whose it is, which cases are to be done, and doing them."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from smile_fast.data.annotations import FILE_NAME, Declarations, read_annotations
from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.data.folder_lock import LOCK, joined, leave_lock, locked
from smile_fast.data.importing.sources import case_sources
from smile_fast.data.preparing.case_record import Wanted
from smile_fast.data.preparing.conversion import refuse_shortage
from smile_fast.data.preparing.one_case import Job, Outcome, identity, kept, prepare_case
from smile_fast.data.processes import run_jobs
from smile_fast.data.store import CASE_FILE, CASES, INDEX, read_case, read_sources
from smile_fast.records import DamagedRecord
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, reason, sha256
from smile_runtime.names import normal_name

PREPARING = ".preparing"
"""Name of the lock that all who prepare a store share; its text says from what."""
_LOOK_AGAIN_S = 0.1  # at the cases that other processes convert
_ADVICE = "run it again with fewer --workers, finished cases are kept"


@dataclass(frozen=True)
class CohortWork:
    """All cases of a cohort as its store shall have them.

    Attributes:
        out: the store's folder.
        dataset: the cohort.
        wanted: name -> the case, in the dataset's order.
        origins: what sources.csv says; only the index knows it, so it may change without a conversion.
    """

    out: Path
    dataset: RawDataset
    wanted: dict[str, Wanted]
    origins: dict[str, str]

    @classmethod
    def plan(cls, dataset: RawDataset, out: Path, annotations: Path | None) -> "CohortWork":
        """Read the declarations; changes nothing.

        Raises:
            InputError: unusable annotations or sources.csv, or a file of the dataset that is a link to nothing.
        """
        _refuse_dangling(dataset)
        path = dataset.path / FILE_NAME if annotations is None else Path(annotations)
        declarations: Declarations = read_annotations(path, dataset.names(), dataset.organs)
        bare = replace(dataset, cases=(), unlabelled=())
        wanted = {
            case.name: Wanted(case, bare, declarations[case.name], out / CASES / case.name) for case in dataset.cases
        }
        return cls(out, dataset, wanted, case_sources(dataset.path))

    def source(self, case: str) -> str:
        """The dataset that a case comes from; "" where nothing says it."""
        return self.origins.get(normal_name(case), "")

    @contextmanager
    def joined(self) -> Iterator[Callable[[], bool]]:
        """Work in the store's folder, beside all others who prepare the same.

        Yields:
            See `smile_fast.data.folder_lock.joined`.

        Raises:
            InputError: it cannot be written, or others prepare something else there now.
        """
        try:
            _make_folders([self.out])
        except OSError as error:
            raise unwritable(self.out, error) from error
        refusal = (
            f"{self.out}: another prepare is at work there now, with other files, declarations or organs than "
            f"{self.dataset.path} has; wait until it has ended, or give another folder"
        )
        with joined(self.out, PREPARING, self._digest(), refusal) as leave:
            yield leave

    def claim(self, force: bool) -> None:
        """Make sure that the folder is a store of this cohort, or an empty one; makes the folders of the cases.

        Raises:
            InputError: it holds something else, or cannot be written.
        """
        try:
            entries = {entry.name for entry in self.out.iterdir()} - {LOCK, PREPARING}
            if "dataset.json" in entries or (entries and CASES not in entries):
                raise InputError(f"{self.out}: holds other files; give a new or empty folder for the store")
            if not force:
                self._refuse_other_store(INDEX in entries)
            leave_lock(self.out)
            # All of them now: what is missing can be counted.
            _make_folders([self.out / CASES, *(wanted.folder for wanted in self.wanted.values())])
        except OSError as error:
            raise unwritable(self.out, error) from error

    def to_do(self, cases: Sequence[RawCase], *, force: bool, rehash: bool) -> tuple[list[Job], list[Outcome]]:
        """The cases of some that are not up to date by the looks of their files, and the kept ones."""
        jobs, done = [], []
        for case in cases:
            wanted = self.wanted[case.name]
            job = Job(wanted, force, rehash, identity(wanted.folder) if force else None)
            outcome = kept(job)
            if outcome is None:
                jobs.append(job)
            else:
                done.append(outcome)
        return jobs, done

    def _digest(self) -> str:
        """Tells what is prepared, on every machine that sees these files."""
        digest = hashlib.sha256()
        for wanted in self.wanted.values():
            looks = [_look(file) for file in wanted.files().values()]
            digest.update(json.dumps([wanted.declared(), looks]).encode())
        return digest.hexdigest()

    def _refuse_other_store(self, has_index: bool) -> None:
        if has_index:
            try:
                organs, sources = read_sources(self.out)
            except DamagedRecord as error:
                organs, sources = self.dataset.organs, _converted(self.out)
                if not sources:
                    index = self.out / INDEX
                    damage = str(error).removeprefix(f"{index}: ").rpartition("; ")[0]
                    raise InputError(
                        f"{index}: {damage}, and no case says of what dataset it was; replace the store with "
                        "'smile-fast prepare --force'"
                    ) from None
            if organs != self.dataset.organs:
                raise InputError(
                    f"{self.out}: holds a store of other organs; give another folder, or --force to replace it"
                )
        else:
            sources = _converted(self.out)
        if sources and not _share_a_file(sources, self.dataset):
            raise InputError(
                f"{self.out}: holds a store that was made from other files than those of {self.dataset.path}; give "
                "another folder, or --force to replace it"
            )


def convert_all(jobs: Sequence[Job], workers: int, note: Callable[[str], None]) -> Iterator[Outcome]:
    """Convert cases, in several processes, beside other calls that do the same; theirs are looked at again at the end.

    Args:
        jobs: the cases.
        workers: how many processes.
        note: gets one sentence if others have to be waited for.

    Yields:
        What became of each, in any order; none of it "busy".

    Raises:
        InputError: see `prepare_case` and `run_jobs`; or no process can be started.
    """
    by_name = {job.wanted.case.name: job for job in jobs}
    ready, busy = list(jobs), list[Job]()
    waited = False
    while ready or busy:
        for outcome in _run(ready, workers):
            if outcome.kind == "busy":
                busy.append(by_name[outcome.case])
            else:
                yield outcome
        ready, busy = _free(busy)
        looked = [(job, kept(job)) for job in ready]
        ready = [job for job, outcome in looked if outcome is None]
        yield from (outcome for _, outcome in looked if outcome is not None)
        if busy and not ready:
            if not waited:
                names = listed([job.wanted.case.name for job in busy])
                note(f"waiting for cases that another prepare converts: {names}")
            waited = True
            time.sleep(_LOOK_AGAIN_S)


def _run(jobs: list[Job], workers: int) -> Iterator[Outcome]:
    try:
        yield from run_jobs(prepare_case, jobs, workers, advice=_ADVICE)
    except OSError as error:
        raise InputError(
            f"--workers: no process can be started here ({reason(error)}); run it again with --workers 1, finished "
            "cases are kept"
        ) from error


def unwritable(out: Path, error: OSError) -> InputError:
    """The sentence about a store's folder that cannot be written.

    Raises:
        InputError: another sentence, where the folder is not to blame; see `refuse_shortage`.
    """
    told = InputError(f"{out}: the store cannot be written there ({reason(error)}); give another folder")
    told.__cause__ = error
    refuse_shortage(told, out)
    return told


def _free(jobs: list[Job]) -> tuple[list[Job], list[Job]]:
    """Cases that no process is at now, and the others."""
    free, busy = [], []
    for job in jobs:
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(job.wanted.folder))
                free.append(job)
            except InputError:
                busy.append(job)
    return free, busy


def _look(file: Path) -> tuple[int, int]:
    """Bytes of a file, and the second of its last change: some mounts round its fractions.

    -1 where it cannot be looked at, for whoever reads it will say why.
    """
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1
    return status.st_size, int(status.st_mtime)


def _refuse_dangling(dataset: RawDataset) -> None:
    """Refuse links to nothing: what they lead to may be on a disk that is not there now, with half of the cohort."""
    files = [file for case in dataset.cases for file in (case.image, case.label)]
    dangling = [file for file in files if os.path.islink(file) and not os.path.exists(file)]
    if dangling:
        others = f", and {len(dangling) - 1} other files are likewise" if len(dangling) > 1 else ""
        raise InputError(
            f"{dangling[0]}: leads to {os.readlink(dangling[0])}, which is not there{others}; bring that back, or "
            "remove the case"
        )


def _make_folders(folders: Iterable[Path]) -> None:
    """Make folders, so that they survive a crash of the machine as the files in them do."""
    parents = set()
    for folder in folders:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for one in reversed(missing):
            one.mkdir(exist_ok=True)  # another prepare may be faster
            parents.add(one.parent)
    for parent in parents:
        flush(parent)


def _converted(out: Path) -> dict[str, dict[str, str]]:
    """Case -> SHA-256 of its sources, of the cases that an unfinished store holds already."""
    found: dict[str, dict[str, str]] = {}
    for path in (out / CASES).glob(f"*/{CASE_FILE}"):
        with suppress(InputError):  # what is damaged is converted again
            found[path.parent.name] = read_case(path.parent).case.sources
    return found


def _share_a_file(sources: Mapping[str, Mapping[str, str]], dataset: RawDataset) -> bool:
    """Whether any file of the dataset is one that a store was made from; mostly the first one looked at is.

    Args:
        sources: case -> SHA-256 of the files that the store was made from.
        dataset: the cohort.
    """
    known = {digest for files in sources.values() for digest in files.values()}
    for case in sorted(dataset.cases, key=lambda case: case.name not in sources):
        for file in (case.image, case.label):
            with suppress(InputError):  # an unreadable file has its own sentence later
                if sha256(file) in known:
                    return True
    return False
