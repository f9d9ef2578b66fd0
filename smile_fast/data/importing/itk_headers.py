"""What the text at the start of an .nrrd or .mha file says, before ITK believes it."""

import re
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.io.files import reason

ITK_IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
"""Suffix -> ITK's reader of the format; another one is not tried, whatever a file begins with."""
NO_DIRECTIONS = (
    "the header does not say how the volume lies (no space or no directions), so its axes are taken for left, "
    "posterior, superior; check the sides of the organs, or convert it from DICOM again"
)
_MAX_BYTES = 2**22
_NRRD_DATA_FILE = re.compile(rb"[ \t]*data[ \t]*file[ \t]*:", re.IGNORECASE)
_NRRD_SPACE = re.compile(rb"space: *((right|left)-(anterior|posterior)-superior|ras|las|lps)\b", re.IGNORECASE)
_NRRD_DIRECTIONS = re.compile(rb"space directions:", re.IGNORECASE)
_META_END = re.compile(rb"ElementDataFile[ \t]*=[ \t]*(?i:LOCAL)[ \t]*\r?\n")
_META_DIRECTIONS = re.compile(rb"^[ \t]*(TransformMatrix|Rotation|Orientation)[ \t]*=", re.MULTILINE)


def check_itk_header(path: Path) -> tuple[str, ...]:
    """Refuse a header that names other files, which would be read without being asked for, and never be hashed.

    Args:
        path: a file that is named .nrrd or .mha.

    Returns:
        `NO_DIRECTIONS`, or nothing.

    Raises:
        InputError: it names another file, is not of the format of its name, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
    return _check_nrrd(start, path) if itk_suffix(path) == ".nrrd" else _check_meta(start, path)


def itk_suffix(path: Path) -> str:
    """The suffix by which a file is read, in lower case and without the blanks that a name may end in."""
    return Path(path.name.strip().lower()).suffix


def _check_nrrd(start: bytes, path: Path) -> tuple[str, ...]:
    head, end, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
    lines = re.split(rb"[\r\n]+", head)
    if any(map(_NRRD_DATA_FILE.match, lines)):
        raise _detached(path)
    if not start.startswith(b"NRRD") or not end:
        raise InputError(f"{path}: cannot be read, it has no whole NRRD header; copy it again, or convert it")
    told = any(map(_NRRD_SPACE.match, lines)) and any(map(_NRRD_DIRECTIONS.match, lines))
    return () if told else (NO_DIRECTIONS,)


def _check_meta(start: bytes, path: Path) -> tuple[str, ...]:
    named = re.search(rb"ElementDataFile", start, re.IGNORECASE)
    if named is None:
        raise InputError(f"{path}: cannot be read, it has no whole MetaImage header; copy it again, or convert it")
    head = start[: named.start()]
    if not head.endswith(b"\n") or not _META_END.match(start, named.start()):
        raise _detached(path)
    return () if _META_DIRECTIONS.search(head) else (NO_DIRECTIONS,)


def _detached(path: Path) -> InputError:
    return InputError(
        f"{path}: names another file for its voxels, and headers of their own (also .nhdr and .mhd) are not read; "
        "write header and voxels into one file, or convert it to .nii.gz"
    )
