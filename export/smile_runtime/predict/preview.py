"""A picture of a segmented scan: one axial and one coronal slice with the organs in colour."""

import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, check_readable, reason
from smile_runtime.io.organ_tables import colour

Picture = npt.NDArray[np.uint8]  # [rows, columns, 3] red, green, blue

_OPACITY = 0.45
_LARGEST = 768  # pixels of a side
_GAP = 8  # pixels between the two slices
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_BYTES = 25  # of the chunk that comes first: length, name, 13 bytes, checksum
_FINGERPRINT = 64  # characters of a SHA-256
_KEYWORD = b"smile-predict\0"
_TEXT_HEAD = struct.pack(">I", len(_KEYWORD) + _FINGERPRINT) + b"tEXt" + _KEYWORD


def preview(
    slices: npt.NDArray[np.int16],  # [D, H, W]
    labels: npt.NDArray[np.uint8],  # [D, H, W]
    spacing: tuple[float, float, float],
    window: tuple[float, float],
) -> Picture:
    """Draw the axial and the coronal slice that show most organ voxels, or the middle ones if there are none.

    Args:
        slices: [D, H, W] int16 HU in slices order; any strides.
        labels: [D, H, W] uint8.
        spacing: (z, y, x) mm; a pixel of the picture is square.
        window: HU that are black and white.

    Returns:
        [rows, columns, 3]: the axial slice on the left, the coronal one on the right, both as a radiologist looks
        at them (the patient's right on the left, anterior or superior on top).
    """
    depth, height, _ = labels.shape
    voxels = np.zeros(depth, np.int64)
    per_row = np.zeros(height, np.int64)
    for index, label in enumerate(labels):
        rows = np.count_nonzero(label, axis=1)
        voxels[index] = rows.sum()
        per_row += rows
    z = int(voxels.argmax()) if voxels.any() else depth // 2
    y = int(per_row.argmax()) if per_row.any() else height // 2
    axial = _square(_overlay(slices[z], labels[z], window), spacing[1], spacing[2])
    coronal = _square(_overlay(slices[::-1, y], labels[::-1, y], window), spacing[0], spacing[2])
    picture = np.zeros((max(len(axial), len(coronal)), axial.shape[1] + _GAP + coronal.shape[1], 3), np.uint8)
    for part, left in ((axial, 0), (coronal, axial.shape[1] + _GAP)):
        top = (len(picture) - len(part)) // 2
        picture[top : top + len(part), left : left + part.shape[1]] = part
    return picture


def picture_path(labels: str | os.PathLike[str]) -> Path:
    """Where the picture of a label map lies: beside it, under its name."""
    name = Path(labels).name
    for suffix in (".gz", ".nii"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return Path(labels).with_name(f"{name}.png")


def fingerprint(note: str) -> str:
    """What a picture says of the labels that it shows: SHA-256 of their note, which names scan, model and settings."""
    return hashlib.sha256(note.encode()).hexdigest()


def shown_labels(path: str | os.PathLike[str]) -> str | None:
    """The `fingerprint` of the labels that a picture shows; None if it is missing or none of ours."""
    try:
        check_readable(path)
        with open(path, "rb") as file:
            start = file.read(len(_SIGNATURE) + _IHDR_BYTES + len(_TEXT_HEAD) + _FINGERPRINT)
    except (InputError, OSError):
        return None
    text = start[len(_SIGNATURE) + _IHDR_BYTES :]
    if not (start.startswith(_SIGNATURE) and text.startswith(_TEXT_HEAD)):
        return None
    return text[len(_TEXT_HEAD) :].decode("ascii", "replace")


def remove_other(path: str | os.PathLike[str], shown: str, *, only_ours: bool) -> None:
    """Remove a picture of other labels than those that are about to lie beside it.

    Args:
        path: The picture; it may be missing.
        shown: The `fingerprint` of those labels.
        only_ours: Whether to leave a file alone that no `write_png` wrote, which may be anything.

    Raises:
        InputError: It cannot be removed.
    """
    found = shown_labels(path)
    if found == shown or (only_ours and found is None):
        return
    try:
        # Where a picture will be written, a symbolic link keeps pointing where it points.
        Path(path if only_ours else os.path.realpath(path)).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be replaced ({reason(error)}); choose another place") from error


def write_png(path: str | os.PathLike[str], picture: Picture, shown: str) -> None:
    """Write an RGB picture, atomically; same picture, same bytes.

    Args:
        path: The file to write.
        picture: [rows, columns, 3].
        shown: The `fingerprint` of the labels that it shows; kept inside.

    Raises:
        InputError: ``path`` cannot be written.

    Source:
        W3C, Portable Network Graphics (PNG) Specification, sections 5, 9 and 11.3.4.3: one filter byte (0, none) a row;
        text behind a keyword and a zero byte.
    """
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = picture.reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    text = (b"tEXt", _KEYWORD + shown.encode())
    chunks = [(b"IHDR", header), text, (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")]
    with atomic_path(path) as temporary:
        temporary.write_bytes(_SIGNATURE + b"".join(_chunk(*chunk) for chunk in chunks))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _overlay(hu: npt.NDArray[np.int16], labels: npt.NDArray[np.uint8], window: tuple[float, float]) -> Picture:
    """Grey values of a slice with the organs' colours over them."""
    low, high = window
    grey = ((hu.astype(np.float32) - low) / (high - low)).clip(0, 1)[..., None] * 255
    colours = np.array([(0, 0, 0)] + [colour(value) for value in range(1, 256)], np.float32)
    opacity = np.where(labels > 0, _OPACITY, 0)[..., None]
    blended: npt.NDArray[Any] = grey * (1 - opacity) + colours[labels] * opacity
    return blended.round().astype(np.uint8)


def _square(picture: Picture, row_mm: float, column_mm: float) -> Picture:
    """Repeat or leave out rows and columns (nearest neighbour) until a pixel is square and no side is too long."""
    height, width = picture.shape[0] * row_mm, picture.shape[1] * column_mm
    pixel = max(min(row_mm, column_mm), max(height, width) / _LARGEST)
    rows, columns = max(1, round(height / pixel)), max(1, round(width / pixel))
    y = ((np.arange(rows) + 0.5) * picture.shape[0] / rows).astype(int)
    x = ((np.arange(columns) + 0.5) * picture.shape[1] / columns).astype(int)
    squared: Picture = picture[y][:, x]
    return squared
