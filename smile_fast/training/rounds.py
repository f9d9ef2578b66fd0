"""Relabelling rounds on disk: nothing but this file and `unfinished_round` knows a file's name in a run's rounds.

ROUNDS/T/round.json          number, gamma and scope of round T, what it selected by case and organ and in which slices,
                             and the digests of its overlays
ROUNDS/T/CASE-DIGEST.b2nd    uint8 pseudo-labels [D, H, W] of a case: 0x80 | organ, or 0

A round appears as a whole or not at all, and goes likewise. Human labels are never touched.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.arrays import array_name, read_slices
from smile_fast.data.case_info import Digest, SliceCounts, counts_fit, spread_counts
from smile_fast.records import read_record, write_sealed
from smile_fast.training.curriculum.braking import Braking
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason

COUNTED = ("candidates", "selected", "kept")
OrganCounts = dict[str, dict[str, int]]
"""organ -> numbers of candidates, selected and kept voxels."""
Confidences = dict[str, float]
"""organ -> mean probability of its pseudo-labels."""

SCHEMA = 2
_REMEDY = (
    "restore it from a copy, or train again (a round that 'smile-fast relabel' wrote can be dropped with --undo, and "
    "written again)"
)
UNFINISHED, DROPPED = "unfinished", "dropped"  # of hidden folders: .T.unfinished, .T.dropped
_RECORD = "round.json"


@dataclass(frozen=True)
class Round:
    """Which round, and how many of the candidates it takes.

    Attributes:
        number: t, counted from 1. gamma: share of the candidates. scope: "volume" or "slice".
        braking: what the brakes say; None without any.
    """

    number: int
    gamma: float
    scope: str
    braking: Braking | None = None

    @property
    def asked(self) -> "Round":
        """The round without what it learned from weights: two devices may learn it a little differently."""
        if self.braking is None:
            return self
        return replace(self, braking=replace(self.braking, judged=(), temperatures={}))


@dataclass(frozen=True)
class StoredRound:
    """A finished round.

    Attributes:
        folder: where it is.
        round: number, gamma and scope.
        cases: case -> organ -> numbers of its voxels; a case without a missing organ has no entry.
        slices: case -> pseudo-labels in each slice; the same cases.
        digests: case -> digest of its overlay; the same cases.
        weights: digest of the weights that it was computed with, see `weights_digest`.
        stopped: organs whose pseudo-labels were dropped, since their candidates ran away, in this round or before.
        confidences: case -> organ -> mean probability of its pseudo-labels; where that is known.
    """

    folder: Path
    round: Round
    cases: dict[str, OrganCounts]
    slices: dict[str, SliceCounts]
    digests: dict[str, str]
    weights: str
    stopped: tuple[str, ...] = ()
    confidences: dict[str, Confidences] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file that describes the round, for messages."""
        return self.folder / _RECORD

    def pseudo_labels(self, case: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.uint8]:
        """The pseudo-labels of some axial slices of a case, uint8 [n, H, W].

        Raises:
            InputError: the round has none for the case, or its file is missing, damaged, or not the round's.
        """
        if case not in self.digests:
            raise InputError(f"{self.path}: has no pseudo-labels of case {case}; name a case of the round")
        digest = self.digests[case]
        path = self.folder / array_name(case, digest)
        try:
            return read_slices(path, digest, slices)
        except InputError as error:  # its own remedy is that of the store
            found = str(error).removeprefix(f"{path}: ").rpartition("; ")[0]
            raise InputError(f"{path}: {found}; {_REMEDY}") from None

    def counts(self, case: str, depth: int, organs: Sequence[str]) -> NDArray[np.int64]:  # [D, K]
        """Pseudo-labels of each slice and organ.

        Args:
            case: of the round or not: all 0 then.
            depth: number of slices of the case.
            organs: [K] names.

        Raises:
            InputError: what the round says of the case does not fit its depth or the organs.
        """
        if case not in self.cases:
            return np.zeros((depth, len(organs)), np.int64)
        stored = self.slices[case]
        if not counts_fit(stored, depth, organs):
            raise InputError(f"{self.path}: the pseudo-labels of case {case} are not those of its volume; {_REMEDY}")
        return spread_counts(stored, depth, organs)

    def totals(self) -> OrganCounts:
        """Numbers of candidates, selected and kept voxels by organ, summed over the cases."""
        totals: OrganCounts = {}
        for organs in self.cases.values():
            for organ, counts in organs.items():
                total = totals.setdefault(organ, dict.fromkeys(counts, 0))
                for name, number in counts.items():
                    total[name] += number
        return totals

    def write(self) -> None:
        """Write the round's description into its folder, a line a case."""
        this = self.round
        head: dict[str, Any] = {"schema": SCHEMA, "round": this.number, "gamma": this.gamma, "scope": this.scope}
        if this.braking is not None:
            head |= {"braking": msgspec.to_builtins(this.braking), "stopped": list(self.stopped)}
        slices: Mapping[str, Any] = msgspec.to_builtins(self.slices)
        parts: dict[str, Mapping[str, Any]] = {"cases": self.cases, "slices": slices, "digests": self.digests}
        if self.confidences:
            parts["confidences"] = self.confidences
        text = json.dumps({**head, "weights": self.weights})[:-1]
        text += "".join(f',\n"{name}": {_by_line(entries)}' for name, entries in parts.items())
        write_sealed(self.path, text + "}")


@dataclass(frozen=True)
class _RoundRecord:
    """What round.json holds; see `StoredRound`."""

    schema: Literal[2]
    round: int
    gamma: float
    scope: Literal["volume", "slice"]
    weights: str
    cases: dict[str, OrganCounts]
    slices: dict[str, SliceCounts]
    digests: dict[str, Digest]
    braking: Braking | None = None
    stopped: tuple[str, ...] = ()
    confidences: dict[str, Confidences] = field(default_factory=dict)  # rounds of before they were written have none

    def __post_init__(self) -> None:
        if not self.cases.keys() == self.slices.keys() == self.digests.keys() >= self.confidences.keys():
            raise ValueError("its lists are of different cases")
        check_counted(self.cases.values())
        check_confidences(self.confidences.values())


def check_counted(cases: Iterable[OrganCounts]) -> None:
    """Refuse, as ValueError, what cannot be the numbers of voxels of cases."""
    every = [counts for organs in cases for counts in organs.values()]
    if any(tuple(counts) != COUNTED or min(counts.values()) < 0 for counts in every):
        raise ValueError("numbers of voxels")


def check_confidences(cases: Iterable[Confidences]) -> None:
    """Refuse, as ValueError, what cannot be the mean probabilities of cases."""
    if not all(0 < mean <= 1 for organs in cases for mean in organs.values()):
        raise ValueError("mean probabilities")


def open_round(rounds: Path, number: int) -> StoredRound:
    """Read a finished round; its overlays are read when they are asked for.

    Args:
        rounds: folder of a run's rounds.
        number: t.

    Raises:
        InputError: there is none, or its description is not what `StoredRound.write` writes.
    """
    folder = rounds / str(number)
    path = folder / _RECORD
    record = read_record(path, _RoundRecord, SCHEMA, _REMEDY)
    if record.round != number:
        raise InputError(f"{path}: says that it is round {record.round}; {_REMEDY}")
    this = Round(record.round, record.gamma, record.scope, record.braking)
    return StoredRound(
        folder,
        this,
        record.cases,
        record.slices,
        record.digests,
        record.weights,
        record.stopped,
        record.confidences,
    )


def existing_rounds(rounds: Path) -> list[int]:
    """Numbers of the finished rounds in a run, ascending."""
    return sorted(int(file.parent.name) for file in rounds.glob(f"*/{_RECORD}") if file.parent.name.isdecimal())


def unfinished_rounds(rounds: Path) -> list[int]:
    """Numbers of the rounds in a run that somebody has begun and nobody has finished, ascending."""
    names = (path.name.split(".") for path in rounds.glob(f".*.{UNFINISHED}") if path.is_dir())
    return sorted(int(number) for _, number, *rest in names if number.isdecimal() and len(rest) == 1)


def undo_rounds(rounds: Path, keep: int) -> list[int]:
    """Drop the overlays of every round after round `keep`; human labels were never touched.

    Returns:
        The numbers of the dropped rounds, unfinished ones included.

    Raises:
        InputError: a round cannot be removed; no round is left in part.
    """
    for left in [*rounds.glob(f".*.{DROPPED}"), *rounds.glob(".tmp-*")]:  # of work that was cut short
        shutil.rmtree(left, ignore_errors=True)
    whole = {int(path.name) for path in rounds.glob("*") if path.is_dir() and path.name.isdecimal()}
    begun = set(unfinished_rounds(rounds))
    dropped = sorted(number for number in whole | begun if number > keep)
    for number in reversed(dropped):
        if number in begun:
            drop(rounds, f".{number}.{UNFINISHED}", number)
        if number in whole:
            drop(rounds, str(number), number)
    return dropped


def drop(rounds: Path, name: str, number: int) -> None:
    """Remove a folder of a round; whoever is cut short in it leaves a whole one, or none.

    Raises:
        InputError: it cannot be removed.
    """
    target, hidden = rounds / name, rounds / f".{number}.{DROPPED}"
    try:
        if hidden.exists():  # of a removal that was cut short
            shutil.rmtree(hidden)
        target.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise InputError(
            f"{target}: round {number} cannot be removed ({reason(error)}); make the folder writable"
        ) from None


def _by_line(entries: Mapping[str, Any]) -> str:
    """A JSON object with one entry a line: indented, the slices of 1,000 cases would fill a million lines."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}"
