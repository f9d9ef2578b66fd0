"""Relabelling rounds on disk: nothing else knows a file's name in a run's folder of rounds.

ROUNDS/T/round.json         number, gamma and scope of round T, what it selected by case and organ, and in which slices
ROUNDS/T/CASE-DIGEST.b2nd   uint8 pseudo-labels [D, H, W] of a case: 0x80 | organ, or 0

A round appears as a whole or not at all, and goes likewise. Human labels are never touched.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.arrays import array_name, read_slices, write_array
from smile_fast.data.case_info import (
    SliceCounts,
    counts_fit,
    gather_counts,
    spread_counts,
)
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, read_json, reason
from smile_runtime.label_map import ORGAN_BITS
from smile_runtime.volume.histograms import slice_histograms

COUNTED = ("candidates", "selected", "kept")
OrganCounts = dict[str, dict[str, int]]
"""organ -> numbers of candidates, selected and kept voxels."""

_RECORD = "round.json"
_AGAIN = "smile-fast relabel"


@dataclass(frozen=True)
class Round:
    """Which round, and how many of the candidates it takes.

    Attributes:
        number: t, counted from 1. gamma: share of the candidates. scope: "volume" or "slice".
    """

    number: int
    gamma: float
    scope: str


@dataclass(frozen=True)
class StoredRound:
    """A finished round.

    Attributes:
        folder: where it is.
        round: number, gamma and scope.
        cases: case -> organ -> numbers of its voxels; a case without a missing organ has no entry.
        slices: case -> pseudo-labels in each slice; the same cases.
        digests: case -> digest of its overlay; the same cases.
    """

    folder: Path
    round: Round
    cases: dict[str, OrganCounts]
    slices: dict[str, SliceCounts]
    digests: dict[str, str]

    @property
    def path(self) -> Path:
        """The file that describes the round, for messages."""
        return self.folder / _RECORD

    def pseudo_labels(self, case: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.uint8]:
        """The pseudo-labels of some axial slices of a case, uint8 [n, H, W].

        Raises:
            InputError: the round has none for the case, or its file is damaged.
        """
        digest = self.digests[case]
        return read_slices(self.folder / array_name(case, digest), digest, slices, command=_AGAIN)

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
            raise InputError(
                f"{self.path}: the pseudo-labels of case {case} are not those of its volume; remove the folder "
                f"{self.folder}, or restore the file from a copy"
            )
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


def open_round(rounds: Path, number: int) -> StoredRound:
    """Read a finished round; its overlays are read when they are asked for.

    Args:
        rounds: folder of a run's rounds.
        number: t.

    Raises:
        InputError: there is none, or its description is not what `write_round` writes.
    """
    folder = rounds / str(number)
    path = folder / _RECORD
    remedy = f"remove the folder {folder}, or restore the file from a copy"
    record = read_json(path, remedy)
    try:
        this = Round(int(record["round"]), float(record["gamma"]), str(record["scope"]))
        cases = {
            str(case): {str(organ): {name: int(counts[name]) for name in COUNTED} for organ, counts in organs.items()}
            for case, organs in record["cases"].items()
        }
        slices = msgspec.convert({case: record["slices"][case] for case in cases}, dict[str, SliceCounts])
        digests = {case: str(record["digests"][case]) for case in cases}
        if this.number != number:
            raise ValueError(f"it says that it is round {this.number}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot be read as a relabelling round ({type(error).__name__}: {error}); {remedy}"
        ) from None
    return StoredRound(folder, this, cases, slices, digests)


class RoundWriter:
    """Takes the overlays of a round, case by case; see `write_round`."""

    def __init__(self, folder: Path, organs: Sequence[str]) -> None:
        self._folder, self._organs = folder, organs
        self._cases: dict[str, OrganCounts] = {}
        self._slices: dict[str, Any] = {}
        self._digests: dict[str, str] = {}

    def add(
        self,
        case: str,
        overlay: NDArray[np.uint8],  # [D, H, W]
        counts: OrganCounts,
    ) -> None:
        """Write the pseudo-labels of a case."""
        self._digests[case] = write_array(self._folder, case, overlay)
        self._cases[case] = counts
        self._slices[case] = msgspec.to_builtins(gather_counts(_count(overlay, len(self._organs)), self._organs))

    def finish(self, this: Round) -> None:
        """Write the round's description, a line a case."""
        head = json.dumps({"round": this.number, "gamma": this.gamma, "scope": this.scope})[:-1]
        entries = {"cases": self._cases, "slices": self._slices, "digests": self._digests}
        text = ",\n".join([head, *(f'"{name}": {_by_line(entry)}' for name, entry in entries.items())]) + "}\n"
        with atomic_path(self._folder / _RECORD) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextmanager
def write_round(rounds: Path, this: Round, organs: Sequence[str]) -> Iterator[RoundWriter]:
    """Write a round: it is there when the block ends, and if the block raises anything, nothing of it is left.

    Args:
        rounds: folder of a run's rounds; made if it is not there. A round of the same number is replaced.
        this: number, gamma and scope.
        organs: [K] names; organ k has the value 0x80 | k + 1 in the overlays.

    Raises:
        InputError: the round cannot be written.
    """
    target, unfinished = rounds / str(this.number), rounds / f".{this.number}.unfinished"
    try:
        with _writing(target):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        writer = RoundWriter(unfinished, organs)
        yield writer
        with _writing(target):
            writer.finish(this)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Name the round that cannot be written; what fails while it is computed says so itself."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{target}: the round cannot be written ({reason(error)}); make the folder writable") from None


def existing_rounds(rounds: Path) -> list[int]:
    """Numbers of the finished rounds in a run, ascending."""
    return sorted(_numbers(file.parent for file in rounds.glob(f"*/{_RECORD}")))


def undo_rounds(rounds: Path, keep: int) -> list[int]:
    """Drop the overlays of every round after round `keep`; human labels were never touched.

    Returns:
        The numbers of the dropped rounds, unfinished ones included.

    Raises:
        InputError: a round cannot be removed; no round is left in part.
    """
    for left in rounds.glob(".*.dropped"):  # of an undo that was cut short
        shutil.rmtree(left, ignore_errors=True)
    dropped = sorted(t for t in _numbers(path for path in rounds.glob("*") if path.is_dir()) if t > keep)
    for number in reversed(dropped):
        target, hidden = rounds / str(number), rounds / f".{number}.dropped"
        try:
            target.rename(hidden)  # whoever is cut short in the removal leaves a whole round, or none
            shutil.rmtree(hidden)
        except OSError as error:
            raise InputError(
                f"{target}: round {number} cannot be removed ({reason(error)}); make the folder writable"
            ) from None
    return dropped


def _count(overlay: NDArray[np.uint8], organs: int) -> NDArray[np.int64]:  # [D, H, W] -> [D, K]
    return slice_histograms(np.bitwise_and(overlay, ORGAN_BITS, dtype=np.uint8))[:, 1 : organs + 1]


def _by_line(entries: Mapping[str, Any]) -> str:
    """A JSON object with one entry a line: indented, the slices of 1,000 cases would fill a million lines."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}"


def _numbers(folders: Iterable[Path]) -> list[int]:
    return [int(folder.name) for folder in folders if folder.name.isdecimal()]
