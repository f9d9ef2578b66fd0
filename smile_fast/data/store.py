"""The fast store: one folder a cohort, blosc2 arrays of one axial slice a chunk, and one index that opens it.

STORE/index.json               all that training needs to know of every case; written last, so it is complete
STORE/quarantine.json          the cases that could not be used, and why
STORE/cases/CASE/image.b2nd    int16 HU [D, H, W] in slices order
STORE/cases/CASE/labels.b2nd   uint8 human labels [D, H, W], never changed by any command
STORE/cases/CASE/case.json     the case's entry of the index, its range of HU and the digests of its two arrays
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.annotations import Declarations, read_annotations
from smile_fast.data.arrays import open_array, read_slices
from smile_fast.data.case_info import IMAGE, LABELS, CaseInfo
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, read_json, sha256
from smile_runtime.label_map import MAX_ORGANS
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, body_box, whole_box

FORMAT = "smile-fast store"
SCHEMA = 3  # also rises when the same files give other voxels or another grid
OLD_SCHEMAS = (1, 2)
"""Their stores are not opened, but `prepare` knows whose they are: from the same dataset it makes them again."""
INDEX = "index.json"
QUARANTINE = "quarantine.json"
CASES = "cases"
CASE_FILE = "case.json"


@dataclass(frozen=True)
class Store:
    """A prepared cohort.

    The index holds a SHA-256 of every array's file. A file that is read whole (`read_image` and `read_labels` without
    `slices`) is checked against it before it is decoded, once a process. Single slices, as training draws them, are not
    checked: hashing a volume for one slice would cost more than reading it; damage that makes a slice undecodable is
    found all the same.

    Attributes:
        path: the folder.
        organs: [K] names; organ k has the value k + 1 in the label maps.
        cases: name -> what the index knows of the case.
    """

    path: Path
    organs: tuple[str, ...]
    cases: dict[str, CaseInfo]
    _boxes: dict[tuple[str, BodyRule], BodyBox] = field(default_factory=dict, repr=False, compare=False)
    _checked: set[Path] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a store; reads its index and nothing else.

        Raises:
            InputError: no store, an unfinished one, one of another schema version, or a damaged index.
        """
        path = Path(path)
        index, entry = path / INDEX, read_index(path)
        schema = entry.get("schema")
        if schema != SCHEMA:
            old = schema in OLD_SCHEMAS
            raise InputError(
                f"{index}: schema version {schema}, this version reads {SCHEMA}; make the store again with 'smile-fast "
                f"prepare{'' if old else ' --force'}'{' from the same dataset' if old else ''}"
            )
        try:
            organs = tuple(str(organ) for organ in entry["organs"])
            infos = [CaseInfo.from_json(case, organs) for case in entry["cases"]]
            cases = {info.name: info for info in infos}
            if not 1 <= len(set(organs)) == len(organs) <= MAX_ORGANS or not 1 <= len(cases) == len(infos):
                raise ValueError("organs or cases")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{index}: damaged ({error}); make the store again with 'smile-fast prepare --force'"
            ) from error
        return cls(path=path, organs=organs, cases=cases)

    def image(self, name: str) -> Any:
        """Open the CT of a case: blosc2.NDArray int16 HU [D, H, W].

        Raises:
            InputError: no such case, or its file is missing or damaged.
        """
        return self._array(name, IMAGE, np.dtype(np.int16))

    def human_labels(self, name: str) -> Any:
        """Open the human label map of a case, hidden organs included: blosc2.NDArray uint8 [D, H, W].

        Only evaluation and the audit may look at it; training sees it through the case's visible table.

        Raises:
            InputError: no such case, or its file is missing or damaged.
        """
        return self._array(name, LABELS, np.dtype(np.uint8))

    def read_image(self, name: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.int16]:
        """Read axial slices of the CT of a case: int16 HU [n, H, W].

        Raises:
            InputError: see `image`; or the file is damaged, or is read whole and has another checksum than the index.
        """
        self._check_whole(name, IMAGE, slices)
        return read_slices(self.image(name), self._path(name, IMAGE), slices)

    def read_labels(self, name: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.uint8]:
        """Read axial slices of the human label map of a case: uint8 [n, H, W]. See `human_labels` for who may.

        Raises:
            InputError: see `human_labels`; or the file is damaged, or is read whole and has another checksum than the
                index.
        """
        self._check_whole(name, LABELS, slices)
        return read_slices(self.human_labels(name), self._path(name, LABELS), slices)

    def body_box(self, name: str, rule: BodyRule | None) -> BodyBox:
        """The part of a case that is worth computing: the box that production cuts out of the same scan.

        By the rule, and the version of its algorithm, that `prepare` used it stands in the index; else the image is
        read.

        Raises:
            InputError: see `image`; or the file is damaged.
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
        return [
            self.path / INDEX,
            *(self._path(name, file) for name in self.cases for file in (IMAGE, LABELS, CASE_FILE)),
        ]

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

    def _path(self, name: str, file: str) -> Path:
        return self.path / CASES / name / file

    def _check_whole(self, name: str, file: str, slices: slice | Sequence[int]) -> None:
        """Compare the file of an array with the checksum of the index, if the array is to be read whole."""
        if name not in self.cases or not isinstance(slices, slice) or slices != slice(None):
            return
        path = self._path(name, file)
        if path not in self._checked and path.exists():
            if sha256(path) != self.cases[name].arrays[file]:
                raise InputError(
                    f"{path}: damaged or replaced, it has not the checksum of the index; run 'smile-fast prepare' again"
                )
            self._checked.add(path)

    def _array(self, name: str, file: str, dtype: "np.dtype[Any]") -> Any:
        if name not in self.cases:
            raise InputError(f"{self.path}: the store has no case '{name}'; name one of its index")
        path = self._path(name, file)
        array = open_array(path)
        if array.dtype != dtype or array.shape != self.cases[name].shape:
            raise InputError(
                f"{path}: {array.dtype} {array.shape} does not fit the index ({dtype} {self.cases[name].shape}); "
                "run 'smile-fast prepare' again"
            )
        return array


def read_index(path: Path) -> dict[str, Any]:
    """Read the index of a store, whatever its schema.

    Raises:
        InputError: no store, an unfinished one, or a file that is no index.
    """
    index = path / INDEX
    if not index.exists():
        state, remedy = ("an unfinished store", "finish it") if (path / CASES).is_dir() else ("no store", "make one")
        raise InputError(f"{path}: {state}, it has no {INDEX}; {remedy} with 'smile-fast prepare'")
    entry = read_json(index, "make the store again with 'smile-fast prepare --force'")
    if entry.get("format") != FORMAT:
        raise InputError(f"{index}: not the index of a store; run 'smile-fast prepare' into another folder")
    return entry


def read_sources(path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    """Read whose store it is, also of a store of an old schema.

    Returns:
        Its organs, and by case the SHA-256 of the files that it was made from.

    Raises:
        InputError: see `Store.open`, but for the old schemas.
    """
    entry = read_index(path)
    if entry.get("schema") not in OLD_SCHEMAS:
        store = Store.open(path)
        return store.organs, {name: info.sources for name, info in store.cases.items()}
    try:
        organs = tuple(str(organ) for organ in entry["organs"])
        return organs, {str(case["name"]): dict(case["sources"]) for case in entry["cases"]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path / INDEX}: damaged ({error}); make the store again with 'smile-fast prepare --force'"
        ) from error


def write_index(path: Path, organs: tuple[str, ...], cases: list[CaseInfo]) -> None:
    """Write the index of a store, one case a line: an indented file of 1,000 cases would be five times as long.

    Raises:
        InputError: the file cannot be written.
    """
    head = json.dumps({"format": FORMAT, "schema": SCHEMA, "organs": organs})[:-1]
    lines = ",\n".join(json.dumps(case.to_json()) for case in cases)
    with atomic_path(Path(path) / INDEX) as temporary:
        temporary.write_text(f'{head}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")
