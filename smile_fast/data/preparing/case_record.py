"""What a case's folder says of itself: case.json of its newest conversion, broken.json of why there is none."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smile_fast.data.case_info import CaseInfo
from smile_fast.data.dataset import RawCase, RawDataset
from smile_fast.data.preparing.fingerprint import Fingerprint
from smile_fast.data.store import CASE_FILE, SCHEMA
from smile_fast.records import read_record, write_record
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.volume.preprocessing import BodyRule

BROKEN_FILE = "broken.json"
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
class CaseRecord:
    """What case.json says.

    Attributes:
        info: the case's entry of the index.
        seen: how the sources looked before they were read.
        sizes: bytes of the stored files, by their names.
        range_hu: the lowest and the highest measured value.
        padding: what was read as air, as `Padding.to_json` has it.
        warnings: what has to be known of its values and headers.
    """

    info: CaseInfo
    seen: dict[str, Fingerprint]
    sizes: dict[str, int]
    range_hu: tuple[int, int]
    padding: dict[str, int] | None
    warnings: tuple[str, ...]

    def write(self, wanted: Wanted) -> None:
        """Write case.json.

        Raises:
            InputError: it cannot be written.
        """
        write_record(
            wanted.folder / CASE_FILE,
            {
                **self.info.to_json(),
                **wanted.declared(),
                "range_hu": self.range_hu,
                "padding": self.padding,
                "warnings": self.warnings,
                "files": {"sizes": self.sizes, "seen": {file: asdict(look) for file, look in self.seen.items()}},
            },
        )


@dataclass(frozen=True)
class _Files:
    sizes: dict[str, int]
    seen: dict[str, Fingerprint]


@dataclass(frozen=True)
class _Extras:
    range_hu: tuple[int, int]
    padding: dict[str, int] | None
    warnings: tuple[str, ...]
    files: _Files


@dataclass(frozen=True)
class _Broken:
    problem: str
    declared: dict[str, Any]
    seen: dict[str, Fingerprint]


def read_case(wanted: Wanted) -> CaseRecord | None:
    """What case.json says, if it is of this declaration and its arrays are there; its sources are another question."""
    path = wanted.folder / CASE_FILE
    try:
        entry = read_record(path, dict[str, Any], SCHEMA, "")
        if any(entry.get(key) != value for key, value in wanted.declared().items()):
            return None
        extras = read_record(path, _Extras, SCHEMA, "")
        info = CaseInfo.from_json(entry, wanted.dataset.organs)
        if not info.body.answers(BodyRule()):
            return None
        for file, size in extras.files.sizes.items():
            if (wanted.folder / file).stat().st_size != size:
                return None
    except (InputError, ValueError, TypeError, KeyError, AttributeError, OSError):
        return None  # whatever is wrong with it, the case is converted again
    return CaseRecord(info, extras.files.seen, extras.files.sizes, extras.range_hu, extras.padding, extras.warnings)


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
        same = found.declared == wanted.declared() and all(
            file in found.seen and found.seen[file].looks_like(look) for file, look in now.items()
        )
    except (InputError, OSError):
        return None
    return found.problem if same else None
