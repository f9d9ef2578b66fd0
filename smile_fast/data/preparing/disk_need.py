"""How much room a store takes, known before the first case is converted."""

import os
from collections.abc import Iterable
from pathlib import Path

from smile_fast.data.dataset import RawCase
from smile_runtime.errors import InputError
from smile_runtime.io.nifti import count_voxels

# Bytes of the store for one of the source, at most; measured on CT of 512 x 512: about 1 and 1 to 2.
_IMAGE_GROWTH, _LABELS_GROWTH = 1.5, 3.0
_IMAGE_RATIO = 0.75  # of int16; measured 0.55 where the scanner's noise is in all voxels
_CASE_BYTES = 32 * 2**10  # its JSON and what a file system rounds up


def needed_bytes(cases: Iterable[RawCase]) -> int:
    """Bytes that cases will take in a store, rather too many: the lesser of what headers and files suggest."""
    total = 0
    for case in cases:
        voxels = count_voxels(case.image)
        image = min(_IMAGE_RATIO * 2 * voxels, _IMAGE_GROWTH * _size(case.image))
        labels = min(voxels, _LABELS_GROWTH * _size(case.label))
        total += int(image + labels) + _CASE_BYTES
    return total


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user may still write where a folder lies; None where the system does not say."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def check_room(out: Path, cases: list[RawCase]) -> str:
    """Refuse cases that cannot fit.

    Returns:
        What they will take, one sentence without a full stop.

    Raises:
        InputError: there is less room.
    """
    needed, free = needed_bytes(cases), free_bytes(out)
    if free is not None and needed > free:
        raise InputError(
            f"{out}: {len(cases)} cases to convert take about {gigabytes(needed)}, and {gigabytes(free)} are free "
            "there; free some, or give a folder on another disk"
        )
    left = "" if free is None else f" of {gigabytes(free)} that are free"
    return f"{out}: {len(cases)} cases to convert take at most about {gigabytes(needed)}{left}"


def gigabytes(size: int) -> str:
    """A number of bytes for a sentence."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
