"""The fast store: one folder a cohort, blosc2 arrays of one axial slice a chunk, and one index that opens it.

STORE/index.json               all that training needs to know of every case; written last, so it is complete
STORE/quarantine.json          the cases that could not be used, and why
STORE/cases/CASE/image.b2nd    int16 HU [D, H, W] in slices order
STORE/cases/CASE/labels.b2nd   uint8 human labels [D, H, W], never changed by any command
STORE/cases/CASE/case.json     the case's entry of the index, its range of HU and the digests of its two arrays
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.annotations import Declarations, read_annotations
from smile_fast.data.dataset import Split
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, read_json
from smile_runtime.label_map import MAX_ORGANS
from smile_runtime.volume.preprocessing import BodyBox, BodyRule, body_box, whole_box

FORMAT = "smile-fast store"
SCHEMA = 1
INDEX = "index.json"
QUARANTINE = "quarantine.json"
CASES = "cases"
IMAGE, LABELS, CASE_FILE = "image.b2nd", "labels.b2nd", "case.json"

_DTYPES = (np.dtype(np.int16), np.dtype(np.uint8))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array to a `.b2nd` file, atomically; the same array gives the same bytes.

    Args:
        path: the file.
        array: [D, H, W] int16 or uint8.

    Raises:
        InputError: the file cannot be written.
        ValueError: another dtype or rank, or an empty array.
    """
    if array.ndim != 3 or 0 in array.shape or array.dtype not in _DTYPES:
        raise ValueError(f"array must be int16 or uint8 [D, H, W], not empty, got {array.dtype} {array.shape}")
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(1, *array.shape[1:]),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
    )
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(packed.to_cframe())


def open_array(path: Path) -> Any:
    """Open a `.b2nd` file; slices are decompressed when they are indexed.

    Returns:
        A blosc2.NDArray, read-only. It holds a file descriptor while it lives: keep few.

    Raises:
        InputError: the file is missing or no such array.
    """
    path = Path(path)
    try:
        array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run 'smile-fast prepare' again") from None
    except Exception as error:  # a damaged frame surfaces as five different exception types
        raise InputError(f"{path}: not a readable blosc2 array ({error}); run 'smile-fast prepare' again") from error
    if not isinstance(array, blosc2.NDArray) or array.ndim != 3 or array.dtype not in _DTYPES:
        raise InputError(f"{path}: not an int16 or uint8 array [D, H, W]; run 'smile-fast prepare' again")
    return array


def read_planes(array: Any, path: Path, planes: slice | Sequence[int] = slice(None)) -> NDArray[Any]:
    """Decode axial slices of an array that `open_array` opened: damage shows only here, slice by slice.

    Args:
        array: the open array [D, H, W].
        path: its file, for the message.
        planes: which slices; a sequence is read plane by plane, for a chunk is a plane.

    Returns:
        [n, H, W] in memory.

    Raises:
        InputError: the file is damaged.
    """
    try:
        if isinstance(planes, slice):
            return np.asarray(array[planes])
        return np.stack([array[int(z)] for z in planes])
    except RuntimeError as error:
        raise InputError(
            f"{path}: damaged, it cannot be decompressed; make it again with the command that wrote it "
            "('smile-fast prepare' for a store)"
        ) from error


@dataclass(frozen=True)
class CaseInfo:
    """What the index knows of one case.

    Attributes:
        name: the case.
        split: train or test.
        shape: (D, H, W) in slices order.
        spacing: (z, y, x) mm.
        affine: 4x4, voxel (x, y, z) = (W, H, D) index to mm (RAS), of the volume in slices order.
        states: organ -> state.
        runs: organ -> (first slice, voxels in each slice from there) of the visible human labels; an organ without
            visible voxel, and so every hidden organ, has no entry. See `counts`.
        sources: SHA-256 of the image and label files that the case was made from.
    """

    name: str
    split: Split
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    states: dict[str, State]
    runs: dict[str, tuple[int, tuple[int, ...]]]
    sources: dict[str, str]

    @cached_property
    def counts(self) -> list[list[int]]:
        """[D][K] visible human voxels per slice and organ; hidden organs count 0."""
        columns = [[0] * self.shape[0] for _ in self.states]
        for organ, column in zip(self.states, columns, strict=True):
            if organ in self.runs:
                first, values = self.runs[organ]
                column[first : first + len(values)] = values
        return [list(row) for row in zip(*columns, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The case's entry of the index."""
        return {
            "name": self.name,
            "split": self.split,
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "affine": [list(row) for row in self.affine],
            "states": {organ: state.value for organ, state in self.states.items()},
            "counts": {organ: [first, list(values)] for organ, (first, values) in self.runs.items()},
            "sources": self.sources,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], organs: tuple[str, ...]) -> "CaseInfo":
        """Read an entry of the index.

        Raises:
            ValueError, TypeError, KeyError: the entry is damaged.
        """
        depth, height, width = (int(size) for size in entry["shape"])
        z, y, x = (float(size) for size in entry["spacing"])
        affine = tuple(tuple(float(value) for value in row) for row in entry["affine"])
        runs = {organ: (int(first), tuple(values)) for organ, (first, values) in entry["counts"].items()}
        info = cls(
            name=entry["name"],
            split=entry["split"],
            shape=(depth, height, width),
            spacing=(z, y, x),
            affine=affine,
            states={organ: State(entry["states"][organ]) for organ in organs},
            runs=runs,
            sources=dict(entry["sources"]),
        )
        if (
            not isinstance(info.name, str)
            or info.name in ("", "..")  # a name is a folder: it must not lead elsewhere
            or Path(info.name).name != info.name
            or info.split not in ("train", "test")
            or min(info.shape) < 1
            or not all(math.isfinite(size) and size > 0 for size in info.spacing)
            or [len(row) for row in affine] != [4, 4, 4, 4]
            or len(entry["states"]) != len(organs)
            or any(organ not in info.states for organ in runs)
            or any(info.states[organ] is State.HIDDEN for organ in runs)
            or any(first < 0 or first + len(values) > depth for first, values in runs.values())
            or any(type(value) is not int or value < 0 for _, values in runs.values() for value in values)
        ):
            raise ValueError(f"entry of case {info.name!r}")
        return info


@dataclass(frozen=True)
class Store:
    """A prepared cohort.

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
        path = Path(path)
        index = path / INDEX
        unfinished = (path / CASES).is_dir()
        entry = read_json(
            index,
            "make the store again with 'smile-fast prepare --force'",
            missing=f"{'finish the' if unfinished else 'make a'} store with 'smile-fast prepare'",
        )
        if entry.get("format") != FORMAT:
            raise InputError(f"{index}: not the index of a store; run 'smile-fast prepare' into another folder")
        if entry.get("schema") != SCHEMA:
            raise InputError(
                f"{index}: schema version {entry.get('schema')}, this version reads {SCHEMA}; "
                "make the store again with 'smile-fast prepare --force'"
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

    def read_image(self, name: str, planes: slice | Sequence[int] = slice(None)) -> NDArray[np.int16]:
        """Read axial slices of the CT of a case: int16 HU [n, H, W].

        Raises:
            InputError: see `image`; or the file is damaged.
        """
        return read_planes(self.image(name), self._path(name, IMAGE), planes)

    def read_labels(self, name: str, planes: slice | Sequence[int] = slice(None)) -> NDArray[np.uint8]:
        """Read axial slices of the human label map of a case: uint8 [n, H, W]. See `human_labels` for who may.

        Raises:
            InputError: see `human_labels`; or the file is damaged.
        """
        return read_planes(self.human_labels(name), self._path(name, LABELS), planes)

    def body_box(self, name: str, rule: BodyRule | None) -> BodyBox:
        """The part of a case that is worth computing: the box that production cuts out of the same scan.

        Raises:
            InputError: see `image`; or the file is damaged.
        """
        info = self.cases[name]
        if rule is None:
            return whole_box(info.shape)
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

    def _array(self, name: str, file: str, dtype: "np.dtype[Any]") -> Any:
        if name not in self.cases:
            raise InputError(f"{self.path}: the store has no case '{name}'")
        path = self._path(name, file)
        array = open_array(path)
        if array.dtype != dtype or array.shape != self.cases[name].shape:
            raise InputError(
                f"{path}: {array.dtype} {array.shape} does not fit the index ({dtype} {self.cases[name].shape}); "
                "run 'smile-fast prepare' again"
            )
        return array


def write_index(path: Path, organs: tuple[str, ...], cases: list[CaseInfo]) -> None:
    """Write the index of a store, one case a line: an indented file of 1,000 cases would be five times as long.

    Raises:
        InputError: the file cannot be written.
    """
    head = json.dumps({"format": FORMAT, "schema": SCHEMA, "organs": organs})[:-1]
    lines = ",\n".join(json.dumps(case.to_json()) for case in cases)
    with atomic_path(Path(path) / INDEX) as temporary:
        temporary.write_text(f'{head}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")
