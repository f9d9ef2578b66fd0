"""A cohort on disk: the nnU-Net raw folder (dataset.json, imagesTr, labelsTr, optional imagesTs and labelsTs)."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smile_runtime.errors import InputError
from smile_runtime.io.files import read_json, reason
from smile_runtime.io.scan_files import by_name, describe_others, list_scans, refuse_dicom, stem
from smile_runtime.label_map import MAX_ORGANS, VOID
from smile_runtime.names import normal_name

Split = Literal["train", "test"]
SUFFIX = ".nii.gz"
_ENDINGS = (SUFFIX, ".nii")  # that dataset.json may name; what else nnU-Net reads is for `smile-fast import`
CHANNEL = "_0000"
CHANNEL_SUFFIX = CHANNEL + SUFFIX
_FOLDERS: tuple[tuple[Split, str, str], ...] = (
    ("train", "imagesTr", "labelsTr"),
    ("test", "imagesTs", "labelsTs"),
)


@dataclass(frozen=True)
class RawCase:
    """One scan and its label map.

    Attributes:
        name: the file name without folder, channel and suffix, as `normal_name` spells it.
        split: train, or test for a held-out case.
        image: the CT, `.nii.gz` (or `.nii`, see `RawDataset.open`) in letters of any case.
        label: its label map on the same grid, likewise.
    """

    name: str
    split: Split
    image: Path
    label: Path


@dataclass(frozen=True)
class RawDataset:
    """An nnU-Net raw dataset with one CT channel.

    Attributes:
        path: the folder.
        organs: [K] names, as `normal_name` spells them; organ k has the value k + 1 in the label maps.
        ignore: the value that dataset.json calls "ignore" (no class is supervised there), or None. The value 255
            always means that.
        cases: sorted by name, training cases first.
        unlabelled: names of the images of imagesTs without a label map in labelsTs, which are no cases.
    """

    path: Path
    organs: tuple[str, ...]
    ignore: int | None
    cases: tuple[RawCase, ...]
    unlabelled: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path) -> "RawDataset":
        """Read dataset.json and list the cases; opens no volume.

        Raises:
            InputError: no dataset.json, or one that does not describe a single-channel dataset of `.nii.gz` files, or
                of `.nii` files if its "file_ending" says so, with the values 1..K; a training image without label
                map, a label map without image, two files of one case, a scan of another format; no training case.
        """
        path = Path(path)
        if not os.path.isfile(path / "dataset.json"):
            refuse_dicom(path)
        if not os.path.isdir(path):
            raise InputError(f"{path}: there is no such folder; give the folder that holds dataset.json")
        described = read_json(
            path / "dataset.json",
            "correct it, see the dataset format of nnU-Net",
            missing="name an nnU-Net raw folder, which has one",
        )
        ending = _check_format(described, path / "dataset.json")
        organs, ignore = _organs(described, path / "dataset.json")
        cases, unlabelled = [], []
        for folders in _FOLDERS:
            found, others = _cases(path, ending, *folders)
            cases += found
            unlabelled += others
        training = {case.name for case in cases if case.split == "train"}
        if not training:
            raise InputError(f"{path / 'imagesTr'}: no case found; name the images CASE{CHANNEL}{ending}")
        for case in cases:
            if case.split == "test" and case.name in training:
                raise InputError(f"{path}: case {case.name} is both in imagesTr and imagesTs; keep one of them")
        expected = described.get("numTraining", len(training))
        if _whole(expected) != len(training):
            raise InputError(
                f"{path / 'dataset.json'}: numTraining is {json.dumps(expected)}, but imagesTr holds {len(training)} "
                "cases; add what is missing or correct the number"
            )
        return cls(path, organs, ignore, tuple(cases), tuple(unlabelled))

    def names(self, split: Split | None = None) -> list[str]:
        """The names of the cases, of one split or of all."""
        return [case.name for case in self.cases if split in (None, case.split)]

    def files(self) -> list[Path]:
        """dataset.json, the images and the label maps: what no command may overwrite."""
        return [self.path / "dataset.json", *(file for case in self.cases for file in (case.image, case.label))]


def _check_format(described: Mapping[str, Any], path: Path) -> str:
    """Refuse what dataset.json may say in nnU-Net and this package does not read; returns the files' ending."""
    channels = described.get("channel_names", described.get("modality"))
    if not isinstance(channels, (dict, list)) or len(channels) != 1:
        count = len(channels) if isinstance(channels, (dict, list)) else "no"
        raise InputError(f'{path}: "channel_names" has {count} channels; name exactly one, e.g. {{"0": "CT"}}')
    if "dataset" in described:
        raise InputError(f'{path}: a "dataset" list of files is not supported; use imagesTr and labelsTr')
    ending = described.get("file_ending", SUFFIX)
    if str(ending).lower() not in _ENDINGS:
        raise InputError(
            f'{path}: "file_ending" is {json.dumps(ending)}; convert the files to "{SUFFIX}", see smile-fast import'
        )
    return str(ending).lower()


def _organs(described: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], int | None]:
    """Return the organs in the order of their values, and nnU-Net's ignore value."""
    labels = described.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise InputError(f'{path}: "labels" does not map names to values; write e.g. {{"background": 0, "liver": 1}}')
    by_name = _by_name(labels, path)
    if by_name.pop("background", None) != 0:
        raise InputError(f'{path}: "labels" does not hold "background": 0; add it')
    ignore = None
    for name in ("ignore", "void"):
        if name in by_name:
            value = by_name.pop(name)
            # nnU-Net demands the highest value, one above the organs; 255 is this package's own void.
            if value != VOID and (name == "void" or value != max(by_name.values(), default=0) + 1):
                raise InputError(
                    f'{path}: the label "{name}" has the value {value}; give it {VOID}'
                    + (" or one more than the highest organ" if name == "ignore" else "")
                )
            ignore = value if value != VOID else ignore
    if not 1 <= len(by_name) <= MAX_ORGANS:
        raise InputError(f'{path}: "labels" names {len(by_name)} organs; name 1 to {MAX_ORGANS}')
    ordered = sorted(by_name, key=by_name.__getitem__)
    values = [by_name[name] for name in ordered]
    if values != list(range(1, len(values) + 1)):
        raise InputError(
            f"{path}: the organs have the values {values[:20]}; use 1..{len(values)} without gap or repetition"
        )
    return tuple(ordered), ignore


def _by_name(labels: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Read {"liver": 1} as well as the older {"1": "liver"}."""
    by_name: dict[str, int] = {}
    older = all(key.isdecimal() and isinstance(value, str) for key, value in labels.items())
    for key, entry in labels.items():
        name, given = (entry, key) if older else (key, entry)
        value, name = _whole(given), normal_name(name)
        if value is None:
            raise InputError(
                f"{path}: the label '{name}' has the value {json.dumps(given)}; give it one integer "
                "(regions are for smile-fast import)"
            )
        if not name or not name.isprintable():
            raise InputError(f"{path}: {json.dumps(name)} is no usable organ name; use printable text")
        if name in by_name:
            raise InputError(f"{path}: the label '{name}' occurs twice; give every label one entry")
        by_name[name] = value
    return by_name


def _whole(value: object) -> int | None:
    """A whole number as programs write it to JSON, 4, 4.0 or "4"; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.0*)?", value.strip()):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _cases(path: Path, ending: str, split: Split, images: str, labels: str) -> tuple[list[RawCase], list[str]]:
    """List the cases of one split, and the images that need none: the held-out ones need labels to be of use."""
    image_folder, label_folder = path / images, path / labels
    if split == "test" and not label_folder.is_dir():
        return [], []
    image_files = by_name((_case_name(file, CHANNEL, ending), file) for file in _files(image_folder))
    label_files = by_name((_case_name(file, "", ending), file) for file in _files(label_folder))
    unlabelled = sorted(image_files.keys() - label_files.keys()) if split == "test" else []
    for name in sorted((image_files.keys() ^ label_files.keys()) - set(unlabelled)):
        have, want, wanted = (
            (images, labels, name + ending) if name in image_files else (labels, images, name + CHANNEL + ending)
        )
        raise InputError(
            f"{path}: case {name} is in {have}, but {want}/{wanted} does not exist; add it or remove the case"
        )
    cases = [RawCase(name, split, image_files[name], label_files[name]) for name in sorted(label_files)]
    return cases, unlabelled


def _files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder; hidden files and other documents are left alone, other scans are refused."""
    try:
        files, others = list_scans(folder)
    except FileNotFoundError:
        raise InputError(f"{folder}: there is no such folder; make it, a dataset needs one") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({reason(error)}); check its permissions") from error
    if others:
        raise InputError(f"{folder}: {describe_others(folder, others)}")
    return files


def _case_name(file: Path, channel: str, ending: str) -> str:
    """The case of a file that is named CASE, channel, suffix."""
    whole = stem(file.name) or ""
    name = normal_name(whole.removesuffix(channel))
    named = normal_name(file.name).lower().endswith(ending) and whole.endswith(channel)
    if not named or not name or name.startswith(".") or not name.isprintable():
        kind = "single-channel images" if channel else "label maps"
        raise InputError(
            f"{str(file)!r}: not a name for a case ({kind} are named CASE{channel}{ending}); rename, convert or remove "
            "it"
        )
    return name
