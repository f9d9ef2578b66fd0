"""A relabelling round in the making: any number of processes add cases, and whoever finishes it makes it appear.

ROUNDS/.T.unfinished/plan.json              what is made: number, gamma, scope and the weights that it is made with
ROUNDS/.T.unfinished/cases/CASE.json        a case that is done: the numbers of its voxels, and which overlay is its own
ROUNDS/.T.unfinished/round/CASE-DIGEST.b2nd the overlays; this folder becomes the round
ROUNDS/.T.lock                              shared by those who add cases, held alone by who finishes or begins anew

Each file appears as a whole, the record of a case after its overlay. What was killed is gone on with.
"""

import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.arrays import array_name, read_slices, verify_array, write_array
from smile_fast.data.case_info import SliceCounts, gather_counts
from smile_fast.data.folder_lock import locked, shared
from smile_fast.records import read_record, write_record
from smile_fast.training.round_plan import (
    CASES,
    PLAN,
    ROUND,
    SCHEMA,
    DoneCase,
    Plan,
    folder_of,
    lock_of,
    missing_cases,
    other_round,
    plan_of,
    read_plan,
)
from smile_fast.training.rounds import (
    DROPPED,
    Confidences,
    OrganCounts,
    Round,
    StoredRound,
    drop,
    existing_rounds,
    open_round,
)
from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, reason
from smile_runtime.label_map import ORGAN_BITS, PSEUDO_BIT
from smile_runtime.volume.histograms import slice_histograms

PATIENCE = 10.0  # seconds that somebody else may take to begin a round anew; it takes a moment
_PAUSE = 0.05
_REMEDY = "relabel again"
Judge = Callable[[dict[str, OrganCounts]], tuple[str, ...]]
"""What the cases of a round found, to the organs that get no pseudo-labels."""


def _nobody(found: dict[str, OrganCounts]) -> tuple[str, ...]:
    return ()


class UnfinishedRound:
    """The folder of a round in the making.

    Args:
        rounds: folder of a run's rounds.
        plan: what is made.
    """

    def __init__(self, rounds: Path, plan: Plan) -> None:
        self._rounds, self._plan = rounds, plan
        self._target, self._folder = rounds / str(plan.number), folder_of(rounds, plan.number)
        self._written: set[str] = set()  # cases of this process: it knows what is on the disk

    def begin(self) -> bool:
        """Make the folder if there is none.

        Returns:
            Whether it is one of this plan now: if not, it is that of other weights or another version, or damaged.

        Raises:
            InputError: it is one of another gamma or scope, or it cannot be made.
        """
        with _writing(self._target):
            if not self._folder.is_dir():
                self._make_folder()
            try:
                found = read_plan(self._folder)
            except InputError as error:
                if isinstance(error.__cause__, OSError):
                    raise  # the disk is to blame, and not the plan
                return False
            if found.round.asked != self._plan.round.asked:  # more likely a slip of the hand than a wish
                raise other_round(self._folder, found.round, self._plan.round)
            fits = found == self._plan
            if fits:  # it may be what was left when a round had just been finished
                (self._folder / ROUND).mkdir(exist_ok=True)
            return fits

    def _make_folder(self) -> None:
        temporary = self._rounds / f".tmp-{secrets.token_hex(8)}"
        try:
            for part in (CASES, ROUND):
                (temporary / part).mkdir(parents=True)
            write_record(temporary / PLAN, asdict(self._plan))
            try:
                temporary.rename(self._folder)
            except OSError:
                if not self._folder.is_dir():
                    raise
                return  # somebody else was faster
            flush(self._rounds)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def begin_anew(self) -> None:
        """Make the folder in place of one that others have begun with other weights or another version."""
        if self.begin():
            return
        dropped = len(list((self._folder / CASES).glob("*.json")))
        print(
            f"warning: {self._target}: {dropped} finished cases are dropped: they are of other weights or another "
            "version, or their plan is damaged",
            file=sys.stderr,
        )
        drop(self._rounds, self._folder.name, self._plan.number)
        self.begin()

    def has(self, case: str) -> bool:
        """Whether a case is done; one whose record or overlay is damaged or gone is not."""
        return self._done(case) is not None

    def add(
        self,
        case: str,
        overlay: NDArray[np.uint8] | None,  # [D, H, W]
        counts: OrganCounts,
        confidences: Confidences | None = None,
    ) -> None:
        """Write the pseudo-labels of a case, None for a case without a missing organ, and then its record."""
        with _writing(self._target):
            digest: str | None = None
            slices: SliceCounts = {}
            if overlay is not None:
                digest = write_array(self._folder / ROUND, case, overlay)
                slices = gather_counts(_count(overlay, len(self._plan.organs)), self._plan.organs)
            done = DoneCase(SCHEMA, self._plan.digest, counts, slices, digest, confidences or {})
            write_record(self._record_path(case), msgspec.to_builtins(done))
            self._written.add(case)

    def finish(self, cases: Sequence[str], judge: Judge = _nobody) -> StoredRound:
        """Make the round appear, in place of an older one of the same number.

        Args:
            cases: those of the round.
            judge: which organs get no pseudo-labels, by what all cases found.

        Raises:
            InputError: one is not done, or the round cannot be written.
        """
        found = {case: self._done(case) for case in cases}
        done = {case: record for case, record in found.items() if record is not None}
        if missing := [case for case in cases if case not in done]:
            raise missing_cases(self._target, missing, cases)
        stopped = judge({case: record.organs for case, record in done.items() if record.overlay is not None})
        done = {case: self._without(case, record, stopped) for case, record in done.items()}
        made = self._folder / ROUND
        digests = {case: record.overlay for case, record in done.items() if record.overlay is not None}
        stored = StoredRound(
            made,
            self._plan.round,
            {case: done[case].organs for case in digests},
            {case: done[case].slices for case in digests},
            digests,
            self._plan.weights,
            stopped,
            {case: done[case].confidences for case in digests if done[case].confidences},
        )
        with _writing(self._target):
            named = {made / array_name(case, digest) for case, digest in digests.items()}
            for file in made.iterdir():
                if file not in named:  # of a process that was killed
                    file.unlink()
            stored.write()
            self._replace(made)
        return replace(stored, folder=self._target)

    def _without(self, case: str, record: DoneCase, stopped: Sequence[str]) -> DoneCase:
        """Drop the pseudo-labels of some organs from a case that is done; its candidates stay in the record.

        What another organ had lost to them stays unlabelled in this round: who else wanted a voxel is not kept.
        """
        gone = [organ for organ in stopped if record.organs.get(organ, {}).get("selected")]
        if record.overlay is None or not gone:
            return record
        values = [PSEUDO_BIT | (self._plan.organs.index(organ) + 1) for organ in gone]
        path = self._folder / ROUND / array_name(case, record.overlay)
        overlay = read_slices(path, record.overlay, slice(None)).copy()
        overlay[np.isin(overlay, values)] = 0
        counts = {
            organ: {**numbers, "selected": 0, "kept": 0} if organ in gone else numbers
            for organ, numbers in record.organs.items()
        }
        confidences = {organ: mean for organ, mean in record.confidences.items() if organ not in gone}
        self.add(case, overlay, counts, confidences)
        return read_record(self._record_path(case), DoneCase, SCHEMA, _REMEDY)

    def _replace(self, made: Path) -> None:
        old = self._rounds / f".{self._plan.number}.{DROPPED}"
        shutil.rmtree(old, ignore_errors=True)
        if self._target.exists():
            self._target.rename(old)
        made.rename(self._target)
        flush(self._rounds)
        for folder in (old, self._folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _done(self, case: str) -> DoneCase | None:
        path = self._record_path(case)
        try:
            record = read_record(path, DoneCase, SCHEMA, _REMEDY)
        except InputError:
            return None
        if record.plan != self._plan.digest:
            return None
        return record if case in self._written or self._overlay_is_whole(case, record.overlay) else None

    def _overlay_is_whole(self, case: str, digest: str | None) -> bool:
        if digest is None:
            return True
        try:
            verify_array(self._folder / ROUND / array_name(case, digest), digest)
        except InputError:
            return False
        return True

    def _record_path(self, case: str) -> Path:
        return self._folder / CASES / f"{case}.json"


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
        InputError: the round cannot be written, others write it, or they have begun it with another gamma or scope.
    """
    unfinished = UnfinishedRound(rounds, plan_of(this, organs, weights))
    _make(rounds, this)
    with locked(rounds, lock_of(this.number)):
        begun = not folder_of(rounds, this.number).is_dir()
        unfinished.begin_anew()
        try:
            yield unfinished
        except Exception:
            if begun:
                shutil.rmtree(folder_of(rounds, this.number), ignore_errors=True)
            raise


@contextmanager
def share_round(rounds: Path, this: Round, organs: Sequence[str], weights: str) -> Iterator[UnfinishedRound]:
    """Write a part of a round, beside others; see `write_round`. What was added stays, whatever happens.

    Raises:
        InputError: the round cannot be written, somebody writes it with other weights, or others have begun it with
            another gamma or scope.
    """
    unfinished = UnfinishedRound(rounds, plan_of(this, organs, weights))
    _make(rounds, this)
    with ExitStack() as held:
        _join(unfinished, rounds, this, held)
        yield unfinished


def _join(unfinished: UnfinishedRound, rounds: Path, this: Round, held: ExitStack) -> None:
    """Hold the lock, shared, over a folder of this plan; one of other weights goes if nobody is at work in it."""
    lock, until = lock_of(this.number), time.monotonic() + PATIENCE
    while True:
        with ExitStack() as attempt:
            if _got(attempt, shared(rounds, lock)):
                if unfinished.begin():
                    held.push(attempt.pop_all())
                    return
                attempt.close()
                if _got(attempt, locked(rounds, lock)):
                    unfinished.begin_anew()
                    continue
        if time.monotonic() >= until:
            raise InputError(
                f"{rounds / str(this.number)}: another process finishes this round now, or makes it with other "
                "weights; wait until it has ended"
            )
        time.sleep(_PAUSE)


def _got(stack: ExitStack, lock: AbstractContextManager[bool]) -> bool:
    try:
        stack.enter_context(lock)
    except InputError:
        return False
    return True


def finish_round(
    rounds: Path, this: Round, cases: Sequence[str], weights: str | None = None, judge: Judge = _nobody
) -> StoredRound:
    """Make a round appear that others have written, part by part; if somebody has done so already, open it.

    Args:
        rounds: folder of a run's rounds.
        this: number, gamma and scope of the round.
        cases: all of its cases, whether an organ is missing in them or not.
        weights: digest of those that it has to be of, if they may have changed since.
        judge: see `UnfinishedRound.finish`.

    Raises:
        InputError: cases are missing, what is unfinished is another round or one of other weights, the round cannot be
            written, or others are still at work.
    """
    target, folder = rounds / str(this.number), folder_of(rounds, this.number)
    if not rounds.is_dir():
        raise missing_cases(target, cases, cases)
    with locked(rounds, lock_of(this.number)):
        if not (folder / ROUND).is_dir():
            if this.number in existing_rounds(rounds):
                shutil.rmtree(folder, ignore_errors=True)
                return _refuse_other(open_round(rounds, this.number), this)
            raise missing_cases(target, cases, cases)
        plan = read_plan(folder)
        if plan.round != this:
            raise other_round(folder, plan.round, this)
        if weights not in (None, plan.weights):
            raise InputError(
                f"{folder}: was begun with other weights than those of the run now; run 'smile-fast relabel' again for "
                "all its shards, or undo it"
            )
        return UnfinishedRound(rounds, plan).finish(cases, judge)


def begun_round(rounds: Path, number: int) -> Round | None:
    """What a round says of itself that somebody has begun, or finished; None if there is none of the number.

    Raises:
        InputError: what it says is damaged.
    """
    folder = folder_of(rounds, number)
    if (folder / ROUND).is_dir():
        return read_plan(folder).round
    return open_round(rounds, number).round if number in existing_rounds(rounds) else None


def _refuse_other(stored: StoredRound, this: Round) -> StoredRound:
    if stored.round != this:
        raise other_round(stored.folder, stored.round, this)
    return stored


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
