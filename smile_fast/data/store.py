"""The fast store: one folder a cohort, blosc2 arrays of one axial slice a chunk, and one index that opens it.

STORE/index.json                      all that training needs to know of every case; it names the files of the store
STORE/quarantine.json                 the cases that could not be used, and why
STORE/cases/CASE/image-DIGEST.b2nd    int16 HU [D, H, W] in slices order
STORE/cases/CASE/labels-DIGEST.b2nd   uint8 human labels [D, H, W]
STORE/cases/CASE/case.json            the newest conversion of the case: its entry of the index, and more of it
STORE/cases/CASE/broken.json          why the case as it is now could not be converted

An array's file is named by its content and never changed. So an index is whole as long as its files are there: a case
that is converted again gets other files, and who has opened the store before reads on what was there then. Both kinds
of JSON are sealed records (`smile_fast.records`); an index has a line for each case.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.annotations import Declarations, read_annotations
from smile_fast.data.arrays import array_name, read_slices
from smile_fast.data.case_info import IMAGE, LABELS, CaseInfo
from smile_fast.records import DamagedRecord, read_record, schema_of, write_record, write_sealed
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.label_map import MAX_ORGANS
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, body_box, whole_box

SCHEMA: Final = 4  # also rises when the same files give other voxels or another grid
OLD_SCHEMAS = (1, 2, 3)
"""Their stores are not opened, but `prepare` knows whose they are: from the same dataset it makes them again."""
INDEX = "index.json"
QUARANTINE = "quarantine.json"
CASES = "cases"
CASE_FILE = "case.json"
BROKEN_FILE = "broken.json"
DTYPES: "dict[str, np.dtype[Any]]" = {IMAGE: np.dtype(np.int16), LABELS: np.dtype(np.uint8)}

_FORMAT = "smile-fast store"
_AGAIN = "make the store again with 'smile-fast prepare', which keeps its cases"


@dataclass(frozen=True)
class Index:
    """What index.json holds.

    Attributes:
        format, schema: of which kind and version it is.
        organs: [K] names; organ k has the value k + 1 in the label maps.
        cases: in the order of the dataset.
    """

    format: Literal["smile-fast store"]
    schema: Literal[4]
    organs: tuple[str, ...]
    cases: tuple[CaseInfo, ...]

    def __post_init__(self) -> None:
        """Refuse what no store holds; a `ValueError` says what."""
        if not 1 <= len(set(self.organs)) == len(self.organs) <= MAX_ORGANS:
            raise ValueError("organs")
        if not 1 <= len({info.name for info in self.cases}) == len(self.cases):
            raise ValueError("cases")
        for info in self.cases:
            info.check_stored(self.organs)


@dataclass(frozen=True)
class CaseFile:
    """What case.json holds: a conversion of a case.

    Attributes:
        schema: of which version it is.
        organs: of the dataset.
        ignore: the dataset's value of voxels that are void.
        case: its entry of the index.
        range_hu: lowest and highest value, HU.
        warnings: sentences about its values and headers.
        padding: what was read as air, if anything (`Padding.to_json`).
    """

    schema: Literal[4]
    organs: tuple[str, ...]
    ignore: int | None
    case: CaseInfo
    range_hu: tuple[int, int]
    warnings: tuple[str, ...]
    padding: dict[str, Any] | None

    def __post_init__(self) -> None:
        """Refuse what no conversion is; a `ValueError` says what."""
        self.case.check_stored(self.organs)


@dataclass(frozen=True)
class Store:
    """A prepared cohort.

    Every slice that is read is verified against the index, whole arrays and single slices alike.

    Attributes:
        path: the folder.
        organs: [K] names; organ k has the value k + 1 in the label maps.
        cases: name -> what the index knows of the case.
    """

    path: Path
    organs: tuple[str, ...]
    cases: dict[str, CaseInfo]
    _boxes: dict[tuple[str, BodyRule], BodyBox] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a store; reads its index and nothing else.

        Raises:
            InputError: no store, an unfinished one, one of another schema version, or a damaged index.
        """
        index = read_index(Path(path))
        return cls(path=Path(path), organs=index.organs, cases={info.name: info for info in index.cases})

    def read_image(self, name: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.int16]:
        """Read axial slices of the CT of a case: int16 HU [n, H, W].

        Raises:
            InputError: no such case, or its file is missing, damaged or another one than the index names.
        """
        return self._read(name, IMAGE, slices)

    def read_labels(self, name: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.uint8]:
        """Read axial slices of the human label map of a case, hidden organs included: uint8 [n, H, W].

        Only evaluation and the audit may look at it; training sees it through the case's visible table.

        Raises:
            InputError: see `read_image`.
        """
        return self._read(name, LABELS, slices)

    def array_path(self, name: str, array: str) -> Path:
        """The file of an array (`IMAGE`, `LABELS`) of a case."""
        return Path(self._file(name, array))

    def body_box(self, name: str, rule: BodyRule | None) -> BodyBox:
        """The part of a case that is worth computing: the box that production cuts out of the same scan.

        By the rule, and the version of its algorithm, that `prepare` used it stands in the index; else the image is
        read.

        Raises:
            InputError: see `read_image`.
        """
        info = self.cases[name]
        if rule is None:
            return whole_box(info.shape)
        if info.body.answers(rule):
            return info.body.box
        key = (name, rule)
        if key not in self._boxes:  # one pass over the image, once a process
            self._boxes[key] = body_box(self.read_image(name), info.spacing, rule)
        return self._boxes[key]

    def files(self) -> list[Path]:
        """The index and the files of the cases: what nothing but `prepare` may overwrite."""
        arrays = (self.array_path(name, array) for name in self.cases for array in (IMAGE, LABELS))
        return [self.path / INDEX, *arrays, *(self.path / CASES / name / CASE_FILE for name in self.cases)]

    def declarations(self) -> Declarations:
        """The state of every (case, organ) pair that the store was prepared with."""
        return {name: dict(info.states) for name, info in self.cases.items()}

    def read_declarations(self, path: Path) -> Declarations:
        """Read other declarations than the store was prepared with, e.g. with more annotations hidden.

        Args:
            path: an annotations.csv; rows of cases that the store has not are skipped.

        Raises:
            InputError: see `read_annotations`; or an organ that has voxels in the store is declared absent.
        """
        declarations = read_annotations(path, list(self.cases), self.organs, others=True)
        for name, info in self.cases.items():
            states = declarations[name]
            drawn = set(info.runs)
            # The index does not know what is hidden; only a hidden organ that is called absent is worth a look.
            if any(info.states[organ] is State.HIDDEN and states[organ] is State.ABSENT for organ in self.organs):
                values = np.unique(self.read_labels(name)).tolist()
                drawn |= {organ for value, organ in enumerate(self.organs, start=1) if value in values}
            for organ in self.organs:
                if organ in drawn and states[organ] is State.ABSENT:
                    raise InputError(
                        f"{path}: case {name}, organ {organ} is declared absent, but the store has voxels of it; "
                        "correct the file or the label map"
                    )
        return declarations

    def _file(self, name: str, array: str) -> str:
        return os.path.join(self.path, CASES, name, array_name(array, self.cases[name].arrays[array]))

    def _read(self, name: str, array: str, slices: slice | Sequence[int]) -> NDArray[Any]:
        if name not in self.cases:
            raise InputError(f"{self.path}: the store has no case '{name}'; name one of its index")
        info = self.cases[name]
        return read_slices(self._file(name, array), info.arrays[array], slices, layout=(DTYPES[array], info.shape))


def read_index(path: Path) -> Index:
    """Read the index of a store.

    Raises:
        DamagedRecord: the index is not what was written.
        InputError: no store, an unfinished one, or one of another schema version.
    """
    index = path / INDEX
    if not index.exists():
        if not (path / CASES).is_dir():
            raise InputError(f"{path}: no store, it has no {INDEX}; make one with 'smile-fast prepare'")
        count, command = _what_is_missing(path / CASES)
        raise InputError(f"{path}: an unfinished store, it has no {INDEX}{count}; finish it with '{command}'")
    older = "make the store again with 'smile-fast prepare' from the same dataset"
    newer = "read it with that version, or replace it with 'smile-fast prepare --force'"
    return read_record(index, Index, SCHEMA, _AGAIN, older=older, newer=newer)


def _what_is_missing(cases: Path) -> tuple[str, str]:
    """How many cases of an unfinished store are still to be converted, and the command that goes on."""
    folders = [folder for folder in cases.iterdir() if folder.is_dir()]
    missing = sum(not any((folder / file).exists() for file in (CASE_FILE, BROKEN_FILE)) for folder in folders)
    if folders and not missing:
        return f", but all of its {len(folders)} cases", "smile-fast prepare --finish"
    return f", and {missing} of its {len(folders)} cases are missing", "smile-fast prepare"


@dataclass(frozen=True)
class _OldCase:
    name: str
    sources: dict[str, str]


@dataclass(frozen=True)
class _OldIndex:
    """What is still read of an index of an old schema: whose store it is."""

    organs: tuple[str, ...]
    cases: tuple[_OldCase, ...]


def read_sources(path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    """Read in the index whose store it is, also of a store of an old schema.

    Returns:
        Its organs, and by case the SHA-256 of the files that it was made from.

    Raises:
        InputError: see `read_index`, but for the old schemas.
    """
    index = _read_old_index(path / INDEX) or read_index(path)
    return index.organs, {case.name: case.sources for case in index.cases}


def _read_old_index(index: Path) -> _OldIndex | None:
    try:
        raw = index.read_bytes()
        return msgspec.json.decode(raw, type=_OldIndex) if schema_of(raw) in OLD_SCHEMAS else None
    except OSError:
        return None  # `read_index` says why
    except ValueError as error:
        raise DamagedRecord(f"{index}: damaged ({error}); {_AGAIN}") from None


def write_index(path: Path, organs: tuple[str, ...], cases: Sequence[CaseInfo]) -> None:
    """Write the index of a store, one case a line: an indented file of 1,000 cases would be five times as long.

    Raises:
        InputError: the file cannot be written.
    """
    head = msgspec.json.encode({"format": _FORMAT, "schema": SCHEMA, "organs": organs}).decode()[:-1]
    lines = ",\n".join(msgspec.json.encode(case).decode() for case in cases)
    write_sealed(Path(path) / INDEX, f'{head},"cases":[\n{lines}\n]}}')


def write_case(folder: Path, case: CaseFile) -> None:
    """Write the case.json of a case: last, for it vouches for the arrays.

    Raises:
        InputError: the file cannot be written.
    """
    write_record(Path(folder) / CASE_FILE, msgspec.to_builtins(case))


def read_case(folder: Path) -> CaseFile:
    """Read the case.json of a case.

    Raises:
        InputError: there is none, it is damaged, or of another schema version.
    """
    return read_record(Path(folder) / CASE_FILE, CaseFile, SCHEMA, "run 'smile-fast prepare' again")
