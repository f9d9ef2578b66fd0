"""What a case's folder says of itself: case.json of its newest conversion, broken.json of why there is none."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smile_fast.data.arrays import array_name
from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.data.preparing.fingerprint import Fingerprint
from smile_fast.data.store import BROKEN_FILE, CASE_FILE, SCHEMA, CaseFile, write_case
from smile_fast.records import read_record, write_record
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.volume.preprocessing import BodyRule

IMAGE_SOURCE, LABEL_SOURCE = "image", "label"  # keys of what is known of the two source files


@dataclass(frozen=True)
class Wanted:
    """A case as a store shall have it: what a conversion that is to be kept has to have been made from.

    Attributes:
        case: the case.
        dataset: without its cases, for it travels to other processes.
        states: organ -> state.
        folder: of the case in the store.
    """

    case: RawCase
    dataset: RawDataset
    states: dict[str, State]
    folder: Path

    def declared(self) -> dict[str, Any]:
        """All that decides what the case becomes, beside its two files; plain JSON types."""
        return {
            "schema": SCHEMA,
            "name": self.case.name,
            "split": self.case.split,
            "states": {organ: state.value for organ, state in self.states.items()},
            "organs": list(self.dataset.organs),
            "ignore": self.dataset.ignore,
        }

    def look(self) -> dict[str, Fingerprint]:
        """How the sources look now.

        Raises:
            OSError: one of them cannot be looked at.
        """
        return {
            IMAGE_SOURCE: Fingerprint.of(self.case.image),
            LABEL_SOURCE: Fingerprint.of(self.case.label),
        }


@dataclass(frozen=True)
class CaseRecord(CaseFile):
    """What case.json says, and by what its next `prepare` knows that nothing has changed.

    Attributes:
        sizes: bytes of the files of the arrays (`IMAGE`, `LABELS`).
        seen: how the sources looked before they were read.
    """

    sizes: dict[str, int]
    seen: dict[str, Fingerprint]

    def write(self, folder: Path) -> None:
        """Write case.json; see `write_case`."""
        write_case(folder, self)

    def is_of(self, wanted: Wanted) -> bool:
        """Whether it is of this case and declaration, and was made as this program would."""
        info = self.case
        return info.body.answers(BodyRule()) and (info.name, info.split, info.states, self.organs, self.ignore) == (
            wanted.case.name,
            wanted.case.split,
            wanted.states,
            wanted.dataset.organs,
            wanted.dataset.ignore,
        )


@dataclass(frozen=True)
class _Broken:
    problem: str
    declared: dict[str, Any]
    seen: dict[str, Fingerprint]


def read_case(wanted: Wanted) -> CaseRecord | None:
    """What case.json says, if it is of this declaration and its arrays are there; its sources are another question."""
    try:
        record = read_record(wanted.folder / CASE_FILE, CaseRecord, SCHEMA, "")
        if not record.is_of(wanted):
            return None
        for array, digest in record.case.arrays.items():
            if os.stat(wanted.folder / array_name(array, digest)).st_size != record.sizes[array]:
                return None
    except (InputError, OSError, KeyError):
        return None  # whatever is wrong with it, the case is converted again
    return record


def write_broken(wanted: Wanted, problem: str, seen: Mapping[str, Fingerprint]) -> None:
    """Note why a case cannot be used, for whoever finishes the store.

    Raises:
        InputError: it cannot be written.
    """
    looks = {file: asdict(look) for file, look in seen.items()}
    entry = {"problem": problem, "declared": wanted.declared(), "seen": looks}
    write_record(wanted.folder / BROKEN_FILE, {"schema": SCHEMA, **entry})


def read_broken(wanted: Wanted) -> str | None:
    """Why a case cannot be used, one sentence; None if nobody has found so of these files and this declaration."""
    try:
        found = read_record(wanted.folder / BROKEN_FILE, _Broken, SCHEMA, "")
        now = wanted.look()
    except (InputError, OSError):
        return None
    same = found.declared == wanted.declared() and all(
        file in found.seen and found.seen[file].looks_like(look) for file, look in now.items()
    )
    return found.problem if same else None
