"""What a case's folder says of itself: case.json of its newest conversion, broken.json of why there is none."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smile_fast.data.arrays import array_name
from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.data.preparing.conversion import refuse_shortage
from smile_fast.data.preparing.fingerprint import Fingerprint
from smile_fast.data.store import BROKEN_FILE, CASE_FILE, SCHEMA, CaseFile, write_case
from smile_fast.records import read_record, write_record
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import sha256
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

    def files(self) -> dict[str, Path]:
        """The sources."""
        return {IMAGE_SOURCE: self.case.image, LABEL_SOURCE: self.case.label}

    def look(self) -> dict[str, Fingerprint]:
        """How the sources look now; nothing where they cannot be looked at, for whoever reads them will say why.

        Raises:
            InputError: they are not there any more, or the like; see `refuse_shortage`.
        """
        try:
            return {source: Fingerprint.of(file) for source, file in self.files().items()}
        except OSError as error:
            refuse_shortage(error, self.case.image)
            return {}

    def hash(self, sources: Iterable[str]) -> dict[str, str | None]:
        """SHA-256 of some sources; None of one that cannot be read.

        Raises:
            InputError: see `look`.
        """
        return {source: _hash(self.files()[source]) for source in sources}


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
    sources: dict[str, str | None]


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

    Args:
        wanted: the case.
        problem: one sentence.
        seen: how its sources looked before they were read.

    Raises:
        InputError: it cannot be written; see also `Wanted.look`.
    """
    sources = wanted.hash(wanted.files())
    entry = {
        "problem": problem,
        "declared": wanted.declared(),
        "seen": {source: asdict(look) for source, look in seen.items()},
        # What was changed since it was read may not be broken any more.
        "sources": sources if _look_alike(seen, wanted.look()) else {},
    }
    write_record(wanted.folder / BROKEN_FILE, {"schema": SCHEMA, **entry})


def read_broken(wanted: Wanted, *, by_looks: bool = False) -> str | None:
    """Why a case cannot be used, one sentence; None if nobody has found so of these files and this declaration.

    Args:
        wanted: the case.
        by_looks: do not read its sources where they look different, as they do on another machine's mount.

    Raises:
        InputError: see `Wanted.look`.
    """
    try:
        found = read_record(wanted.folder / BROKEN_FILE, _Broken, SCHEMA, "")
    except InputError:
        return None
    if found.declared != wanted.declared():
        return None
    now = wanted.look()
    same = (bool(now) and _look_alike(found.seen, now)) or (
        not by_looks and found.sources == wanted.hash(wanted.files())
    )
    return found.problem if same else None


def _look_alike(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> bool:
    return before.keys() == now.keys() and all(before[source].looks_like(look) for source, look in now.items())


def _hash(file: Path) -> str | None:
    try:
        return sha256(file)
    except InputError as error:
        refuse_shortage(error, file)
        return None
