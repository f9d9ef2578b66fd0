"""What a new dataset will hold, before anything of it is written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from smile_fast.data.annotations import Declarations
from smile_fast.data.dataset import Split
from smile_fast.supervision.states import State
from smile_fast.text_table import listed
from smile_runtime.errors import InputError


@dataclass(frozen=True)
class DrawnMap:
    """One label map.

    Attributes:
        path: the file.
        values: [256] its value -> ours; `legend.REFUSED` for a value that means nothing.
        advice: what to do about a value that means nothing, for the end of a sentence.
    """

    path: Path
    values: tuple[int, ...]
    advice: str

    def files(self) -> list[Path]:
        """What is read."""
        return [self.path]

    def meaning(self) -> object:
        """What beside the files' content decides what is drawn, as JSON."""
        return list(self.values)


@dataclass(frozen=True)
class DrawnMasks:
    """One mask file an organ.

    Attributes:
        masks: (organ, file, its value in our label map), those that win first.
        ordered: organs of which it was said who wins; masks of the others may not overlap each other.
    """

    masks: tuple[tuple[str, Path, int], ...]
    ordered: tuple[str, ...]

    def files(self) -> list[Path]:
        """What is read."""
        return [path for _, path, _ in self.masks]

    def meaning(self) -> object:
        """What beside the files' content decides what is drawn, as JSON."""
        return [[(organ, value) for organ, _, value in self.masks], list(self.ordered)]


@dataclass(frozen=True)
class PlannedCase:
    """One case of the new dataset.

    Attributes:
        name: its new name. split: train or test.
        source: name of the dataset that it comes from. original: its name there.
        image: the scan. drawn: its labels.
    """

    name: str
    split: Split
    source: str
    original: str
    image: Path
    drawn: DrawnMap | DrawnMasks

    def files(self) -> list[Path]:
        """What is read."""
        return [self.image, *self.drawn.files()]


@dataclass(frozen=True)
class Plan:
    """The new dataset.

    Attributes:
        organs: [K], in the order of their values.
        cases: training cases first, each split by name.
        states: of every pair; None where nobody has declared them yet.
        sources: the folders that are read.
    """

    organs: tuple[str, ...]
    cases: tuple[PlannedCase, ...]
    states: Declarations | None
    sources: tuple[Path, ...]

    def digest(self, requests: Mapping[str, str]) -> str:
        """SHA-256 of everything that the new dataset follows from.

        Args:
            requests: case -> that of what it is made from.
        """
        states = None if self.states is None else [[self.states[c.name][o] for o in self.organs] for c in self.cases]
        cases = [(case.name, case.split, case.source, case.original, requests[case.name]) for case in self.cases]
        return json_digest([self.organs, cases, states])


def json_digest(value: object) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def joined_state(states: Sequence[State], where: str) -> State:
    """The state of an organ that is made of several labels.

    Args:
        states: of the labels.
        where: the case and the organ, for the message.

    Raises:
        InputError: no state says what is known of it.
    """
    found = set(states)
    if State.HIDDEN in found:
        if State.MISSING in found:
            raise InputError(
                f"{where}: is made of labels of which one is hidden and another missing, which no state can say; "
                "declare both hidden or both missing"
            )
        return State.HIDDEN
    return next(state for state in (State.MISSING, State.ANNOTATED, State.ABSENT) if state in found)


def left_out(cases: Sequence[PlannedCase], patterns: Sequence[str]) -> set[str]:
    """Names of the cases that match what was given with --without.

    Args:
        cases: all of them.
        patterns: a case's new name, or SOURCE/ORIGINAL, or a glob of either.

    Raises:
        InputError: a pattern matches none, or nothing is left to train on.
    """
    gone: set[str] = set()
    names = [(case.name, f"{case.source}/{case.original}") for case in cases]
    for pattern in patterns:
        matched = {name for name, old in names if pattern in (name, old) or _matches(pattern, name, old)}
        if not matched:
            raise InputError(
                f"--without: '{pattern}' matches no case, only {listed([new for new, _ in names])}; correct it"
            )
        gone |= matched
    if not any(case.split == "train" and case.name not in gone for case in cases):
        raise InputError("--without: no training case is left; leave fewer of them out")
    return gone


def _matches(pattern: str, *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
