"""Files of scans: how they are called, and what they are where they are no NIfTI files."""

import os
import re
import shlex
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.names import normal_name

SUFFIXES = (".nii.gz", ".nii")  # in lower case; names may end in any
_OTHER_FORMATS = re.compile(
    r".*\.(nii|hdr|img|nrrd|nhdr|mha|mhd|mgh|mgz|dcm|dicom|ima)(\.(gz|bz2|xz|zst|zip))*", re.IGNORECASE | re.DOTALL
)
_DICOM_MAGIC = slice(128, 132), b"DICM"
_DICOM_DEPTH = 5  # folders below the named one that dcm2niix looks into, unless it is told otherwise
_SHOWN = 5  # names in a sentence
_DICOM_FOLDERS = 64  # that are looked into: somebody may have named a whole disk
_DICOM_SAMPLE = 8  # files of a folder that are looked into: a series has nothing but slices


def stem(name: str) -> str | None:
    """The `normal_name` of a NIfTI file's name without its suffix; None if it is not named like one."""
    name = normal_name(name)
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
    return None if suffix is None else normal_name(name[: -len(suffix)])


def list_scans(folder: Path) -> tuple[list[Path], list[Path]]:
    """The scans of a folder, by name; hidden files and other documents are left out.

    Returns:
        What is named like a NIfTI file, and what else looks like a scan: files of other formats, DICOM files whatever
        their names, folders of them.

    Raises:
        OSError: The folder cannot be read.
    """
    shown = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    nifti = [entry for entry in shown if stem(entry.name) is not None]
    rest = [entry for entry in shown if stem(entry.name) is None]
    return nifti, [entry for entry in rest if _OTHER_FORMATS.fullmatch(entry.name) or is_dicom(entry)]


def by_name(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by the normal names of their cases.

    Raises:
        InputError: Two files have one name.
    """
    found: dict[str, Path] = {}
    for name, file in named:
        if name in found:  # in ASCII: the two may look the same
            raise InputError(
                f"{file.parent}: {found[name].name!a} and {file.name!a} would get one name; move one of them away"
            )
        found[name] = file
    return found


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, or a folder that holds one where dcm2niix would find it."""
    if not os.path.isdir(path):
        return _is_dicom_file(path)
    for folder, below, files in islice(os.walk(path), _DICOM_FOLDERS):
        if len(Path(folder).relative_to(path).parts) >= _DICOM_DEPTH:
            below.clear()
        if any(_is_dicom_file(Path(folder, name)) for name in sorted(files)[:_DICOM_SAMPLE]):
            return True
    return False


def refuse_dicom(path: Path) -> None:
    """Name a DICOM file or a folder of DICOM files for what it is, with the command that converts it.

    Raises:
        InputError: It is one.
    """
    if is_dicom(path):
        kind = "a folder of DICOM files" if path.is_dir() else "a DICOM file"
        raise InputError(f"{path}: is {kind}, not NIfTI; convert it with: {_conversion(path)}")


def describe_others(folder: Path, others: Iterable[Path]) -> str:
    """What is wrong with the other scans that `list_scans` found, and what to do: the rest of a sentence."""
    named = [repr(entry.name) for entry in others]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    by = f" (DICOM with: {_conversion(folder)})" if any(is_dicom(entry) for entry in others) else ""
    return (
        f"holds scans that are no NIfTI files ({', '.join(named[:_SHOWN])}{more}); convert them{by}, or move them away"
    )


def _conversion(path: Path) -> str:
    return f"dcm2niix -z y -o OUT {shlex.quote(str(path if path.is_dir() else path.parent))}"


def _is_dicom_file(path: Path) -> bool:
    place, magic = _DICOM_MAGIC
    try:
        if not os.path.isfile(path):  # opening a pipe could wait forever
            return False
        with open(path, "rb") as file:
            return file.read(place.stop)[place] == magic
    except (OSError, ValueError):  # what cannot be read is reported when it is its turn
        return False
