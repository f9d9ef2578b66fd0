"""A relabelling round in the making: any number of processes add cases, and whoever finishes it makes it appear.

ROUNDS/.T.unfinished/plan.json              what is made: number, gamma, scope and the weights that it is made with
ROUNDS/.T.unfinished/cases/CASE.json        a case that is done: the numbers of its voxels, and which overlay is its own
ROUNDS/.T.unfinished/round/CASE-DIGEST.b2nd the overlays; this folder becomes the round
ROUNDS/.T.lock                              shared by those who add cases, held alone by who finishes or begins anew

Each file appears as a whole, the record of a case after its overlay. What was killed is gone on with.
"""

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from smile_fast import __version__
from smile_fast.data.arrays import array_name, write_array
from smile_fast.data.case_info import SliceCounts, gather_counts
from smile_fast.data.folder_lock import locked, shared
from smile_fast.records import read_record, write_record
from smile_fast.text_table import listed
from smile_fast.training.rounds import (
    DROPPED,
    UNFINISHED,
    OrganCounts,
    Round,
    StoredRound,
    check_counted,
    drop,
    existing_rounds,
    open_round,
)
from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, reason
from smile_runtime.label_map import ORGAN_BITS
from smile_runtime.volume.histograms import slice_histograms

PATIENCE = 10.0  # seconds that somebody else may take to begin a round anew; it takes a moment
_PAUSE = 0.05
_SCHEMA: Final = 1
_PLAN, _CASES, _ROUND = "plan.json", "cases", "round"
_REMEDY = "relabel again"


@dataclass(frozen=True)
class Plan:
    """What a round is made of; cases that were made by another plan are none of it.

    Attributes:
        number, gamma, scope: see `Round`.
        organs: K names.
        weights: digest of the network's weights.
        version: of the program.
    """

    number: int
    gamma: float
    scope: str
    organs: tuple[str, ...]
    weights: str
    version: str
    schema: Literal[1] = _SCHEMA

    @property
    def round(self) -> Round:
        """What the round says of itself."""
        return Round(self.number, self.gamma, self.scope)

    @cached_property
    def digest(self) -> str:
        """Names the plan in the records of its cases."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class _DoneCase:
    """The record of a case; without a missing organ it has no overlay."""

    schema: Literal[1]
    plan: str
    organs: OrganCounts
    slices: SliceCounts
    overlay: str | None

    def __post_init__(self) -> None:
        check_counted([self.organs])


class UnfinishedRound:
    """The folder of a round in the making.

    Args:
        rounds: folder of a run's rounds.
        plan: what is made.
    """

    def __init__(self, rounds: Path, plan: Plan) -> None:
        self._rounds, self._plan = rounds, plan
        self._target, self._folder = rounds / str(plan.number), _folder_of(rounds, plan.number)

    def begin(self) -> bool:
        """Make the folder if there is none.

        Returns:
            Whether it is one of this plan now: if not, it is that of other weights or settings.
        """
        with _writing(self._target):
            if not self._folder.is_dir():
                self._make_folder()
            try:
                fits = _read_plan(self._folder) == self._plan
            except InputError:
                return False
            if fits:  # it may be what was left when a round had just been finished
                (self._folder / _ROUND).mkdir(exist_ok=True)
            return fits

    def _make_folder(self) -> None:
        temporary = self._rounds / f".tmp-{secrets.token_hex(8)}"
        try:
            for part in (_CASES, _ROUND):
                (temporary / part).mkdir(parents=True)
            write_record(temporary / _PLAN, asdict(self._plan))
            try:
                temporary.rename(self._folder)
            except OSError:
                if not self._folder.is_dir():
                    raise
                return  # somebody else was faster
            flush(self._rounds)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder."""
        drop(self._rounds, self._folder.name, self._plan.number)

    def has(self, case: str) -> bool:
        """Whether a case is done; one whose record or overlay is damaged or gone is not."""
        return self._done(case) is not None

    def add(
        self,
        case: str,
        overlay: NDArray[np.uint8] | None,  # [D, H, W]
        counts: OrganCounts,
    ) -> None:
        """Write the pseudo-labels of a case, None for a case without a missing organ, and then its record."""
        with _writing(self._target):
            digest: str | None = None
            slices: SliceCounts = {}
            if overlay is not None:
                digest = write_array(self._folder / _ROUND, case, overlay)
                slices = gather_counts(_count(overlay, len(self._plan.organs)), self._plan.organs)
            done = _DoneCase(_SCHEMA, self._plan.digest, counts, slices, digest)
            write_record(self._record_path(case), msgspec.to_builtins(done))

    def finish(self, cases: Sequence[str]) -> StoredRound:
        """Make the round appear, in place of an older one of the same number.

        Args:
            cases: those of the round.

        Raises:
            InputError: one is not done, or the round cannot be written.
        """
        found = {case: self._done(case) for case in cases}
        done = {case: record for case, record in found.items() if record is not None}
        if missing := [case for case in cases if case not in done]:
            raise _missing(self._target, missing, cases)
        made = self._folder / _ROUND
        digests = {case: record.overlay for case, record in done.items() if record.overlay is not None}
        stored = StoredRound(
            made,
            self._plan.round,
            {case: done[case].organs for case in digests},
            {case: done[case].slices for case in digests},
            digests,
            self._plan.weights,
        )
        with _writing(self._target):
            named = {made / array_name(case, digest) for case, digest in digests.items()}
            for file in made.iterdir():
                if file not in named:  # of a process that was killed
                    file.unlink()
            stored.write()
            self._replace(made)
        return replace(stored, folder=self._target)

    def _replace(self, made: Path) -> None:
        old = self._rounds / f".{self._plan.number}.{DROPPED}"
        shutil.rmtree(old, ignore_errors=True)
        if self._target.exists():
            self._target.rename(old)
        made.rename(self._target)
        flush(self._rounds)
        for folder in (old, self._folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _done(self, case: str) -> _DoneCase | None:
        path = self._record_path(case)
        try:
            record = read_record(path, _DoneCase, _SCHEMA, _REMEDY)
        except InputError:
            return None
        overlay = record.overlay
        there = overlay is None or (self._folder / _ROUND / array_name(case, overlay)).is_file()
        return record if there and record.plan == self._plan.digest else None

    def _record_path(self, case: str) -> Path:
        return self._folder / _CASES / f"{case}.json"


@contextmanager
def write_round(rounds: Path, this: Round, organs: Sequence[str], weights: str) -> Iterator[UnfinishedRound]:
    """Write a round alone: if the block fails, nothing of what it has begun is left; after Ctrl-C what is finished is.

    Args:
        rounds: folder of a run's rounds; made if it is not there.
        this: number, gamma and scope.
        organs: [K] names; organ k has the value 0x80 | k + 1 in the overlays.
        weights: digest of the weights.

    Yields:
        The round: add to it the cases that it does not have, and finish it. It has some if a process was killed that
        wrote the same one.

    Raises:
        InputError: the round cannot be written, or others write it.
    """
    unfinished = UnfinishedRound(rounds, _plan(this, organs, weights))
    _make(rounds, this)
    with locked(rounds, _lock(this.number)):
        begun = not _folder_of(rounds, this.number).is_dir()
        if not unfinished.begin():
            unfinished.discard()
            unfinished.begin()
        try:
            yield unfinished
        except Exception:
            if begun:
                shutil.rmtree(_folder_of(rounds, this.number), ignore_errors=True)
            raise


@contextmanager
def share_round(rounds: Path, this: Round, organs: Sequence[str], weights: str) -> Iterator[UnfinishedRound]:
    """Write a part of a round, beside others; see `write_round`. What was added stays, whatever happens.

    Raises:
        InputError: the round cannot be written, or somebody writes one of its number with other weights or settings.
    """
    unfinished = UnfinishedRound(rounds, _plan(this, organs, weights))
    _make(rounds, this)
    with ExitStack() as held:
        _join(unfinished, rounds, this, held)
        yield unfinished


def _join(unfinished: UnfinishedRound, rounds: Path, this: Round, held: ExitStack) -> None:
    """Hold the lock, shared, over a folder of this plan; one of another plan is removed if nobody is at work in it."""
    lock, until = _lock(this.number), time.monotonic() + PATIENCE
    while True:
        with ExitStack() as attempt:
            if _got(attempt, shared(rounds, lock)):
                if unfinished.begin():
                    held.push(attempt.pop_all())
                    return
                attempt.close()
                if _got(attempt, locked(rounds, lock)):
                    if not unfinished.begin():
                        unfinished.discard()
                    continue
        if time.monotonic() >= until:
            raise InputError(
                f"{rounds / str(this.number)}: another process finishes this round now, or makes it with other weights "
                "or settings; wait until it has ended"
            )
        time.sleep(_PAUSE)


def _got(stack: ExitStack, lock: AbstractContextManager[bool]) -> bool:
    try:
        stack.enter_context(lock)
    except InputError:
        return False
    return True


def finish_round(rounds: Path, this: Round, cases: Sequence[str]) -> StoredRound:
    """Make a round appear that others have written, part by part; if somebody has done so already, open it.

    Args:
        rounds: folder of a run's rounds.
        this: number, gamma and scope of the round.
        cases: all of its cases, whether an organ is missing in them or not.

    Raises:
        InputError: cases are missing, or what is unfinished is another round; the round cannot be written, or others
            are still at work.
    """
    target, folder = rounds / str(this.number), _folder_of(rounds, this.number)
    if not rounds.is_dir():
        raise _missing(target, cases, cases)
    with locked(rounds, _lock(this.number)):
        if not (folder / _ROUND).is_dir():
            if this.number in existing_rounds(rounds):
                shutil.rmtree(folder, ignore_errors=True)
                return _refuse_other(open_round(rounds, this.number), this)
            raise _missing(target, cases, cases)
        plan = _read_plan(folder)
        if plan.round != this:
            raise _other(folder, plan.round, this)
        return UnfinishedRound(rounds, plan).finish(cases)


def begun_round(rounds: Path, number: int) -> Round | None:
    """What a round says of itself that somebody has begun, or finished; None if there is none of the number.

    Raises:
        InputError: what it says is damaged.
    """
    folder = _folder_of(rounds, number)
    if (folder / _ROUND).is_dir():
        return _read_plan(folder).round
    return open_round(rounds, number).round if number in existing_rounds(rounds) else None


def _refuse_other(stored: StoredRound, this: Round) -> StoredRound:
    if stored.round != this:
        raise _other(stored.folder, stored.round, this)
    return stored


def _other(path: Path, found: Round, this: Round) -> InputError:
    return InputError(
        f"{path}: has gamma {found.gamma:g} and scope {found.scope}, not {this.gamma:g} and {this.scope}; finish it "
        "with its own, or undo it"
    )


def _missing(target: Path, missing: Sequence[str], cases: Sequence[str]) -> InputError:
    return InputError(
        f"{target}: {len(missing)} of {len(cases)} cases of the round are missing ({listed(missing, 3)}); run "
        "'smile-fast relabel' for their shards, or without --shard for all that is missing"
    )


def _plan(this: Round, organs: Sequence[str], weights: str) -> Plan:
    return Plan(this.number, this.gamma, this.scope, tuple(organs), weights, __version__)


def _read_plan(folder: Path) -> Plan:
    return read_record(folder / _PLAN, Plan, _SCHEMA, f"remove the folder {folder}, and relabel again")


def _folder_of(rounds: Path, number: int) -> Path:
    return rounds / f".{number}.{UNFINISHED}"


def _lock(number: int) -> str:
    return f".{number}.lock"


def _make(rounds: Path, this: Round) -> None:
    with _writing(rounds / str(this.number)):
        rounds.mkdir(parents=True, exist_ok=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Name the round that cannot be written; what fails while it is computed says so itself."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{target}: the round cannot be written ({reason(error)}); make the folder writable") from None


def _count(overlay: NDArray[np.uint8], organs: int) -> NDArray[np.int64]:  # [D, H, W] -> [D, K]
    return slice_histograms(np.bitwise_and(overlay, ORGAN_BITS, dtype=np.uint8))[:, 1 : organs + 1]
