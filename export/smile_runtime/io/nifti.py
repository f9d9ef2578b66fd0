"""Read and write NIfTI volumes; what a header claims is believed only when the bytes are there."""

import math
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, check_readable, reason
from smile_runtime.io.grids import same_grid
from smile_runtime.io.gzip import MAGIC, MAX_RATIO, Readable, inflate, pack_image, pack_labels
from smile_runtime.io.nifti_geometry import header_geometry
from smile_runtime.io.nifti_header import MAX_BYTES, Header, is_header, parse_header, stores_uint8
from smile_runtime.io.nifti_voxels import HU, Kind, Labels, Voxels
from smile_runtime.io.scan_files import refuse_dicom, stem

Array = npt.NDArray[Any]

_BLOCK_VOXELS = 2**20  # written at a time, so that the temporaries stay at a few MB
_READ_BYTES = 2**20  # read at a time
_COMMENT = 6  # NIFTI_ECODE_COMMENT: plain text
_MAX_NOTE_BYTES = 2**20
_GEOMETRY_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
    "xyzt_units",
)


class Digest(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""


class _Hashed:
    """A file that is read from its start to its end, while somebody hashes it."""

    def __init__(self, file: Readable, digest: Digest) -> None:
        self._file, self._digest = file, digest

    def read(self, size: int, /) -> bytes:
        block = self._file.read(size)
        self._digest.update(block)
        return block


@dataclass(frozen=True)
class Volume:
    """A volume as its file has it.

    Attributes:
        data: [X, Y, Z] in the file's own axis order, Fortran-contiguous.
        affine: [4, 4] float64, voxel index to millimetres (right, anterior, superior), whatever unit the file has;
            finite and invertible.
        path: Where it came from.
        header: The file's header, so that a label map can be written on exactly the same grid.
        warnings: What has to be known of its geometry, ``what is wrong; what to do``: the same text for all files.
    """

    data: Array
    affine: npt.NDArray[np.float64]
    path: Path
    header: nib.Nifti1Header | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


def read_image(path: str | os.PathLike[str], digest: Digest | None = None) -> Volume:
    """Read a CT scan.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file of integers or real numbers, in HU after the file's own scaling.
        digest: Gets all bytes of the file, so that what was read is what is known by it.

    Returns:
        The volume; data int16 HU, rounded to the nearest integer and clipped to the range of int16.

    Raises:
        InputError: The file is missing, damaged or cut short, its header lies, it is not one volume of
            real numbers in three dimensions, or a voxel, a scale or the affine is NaN or infinite.
    """
    return _read(path, HU(), digest)


def read_labels(path: str | os.PathLike[str], digest: Digest | None = None) -> Volume:
    """Read a label map.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file of any integer or real type that holds whole numbers in 0..255.
        digest: See `read_image`.

    Returns:
        The volume; data uint8.

    Raises:
        InputError: As `read_image`, or a voxel is not a whole number in 0..255.
    """
    return _read(path, Labels(), digest)


def read_note(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], str] | None:
    """Read what `write_labels` noted in a label map, from the start of the file alone.

    Returns:
        The volume's shape (X, Y, Z) and the note; None if there is no such file, or none with a note.
    """
    name = Path(path)
    try:
        start = _start(name, MAX_BYTES + _MAX_NOTE_BYTES)
        header = parse_header(start, name)
    except (InputError, OSError):
        return None
    first = int(header.nifti["sizeof_hdr"]) + 4
    size, code = struct.unpack(f"{header.nifti.endianness}2i", start[first : first + 8].ljust(8, b"\0"))
    if start[first - 4 : first - 3] != b"\1" or code != _COMMENT or not 8 < size <= header.offset - first:
        return None
    return header.shape, start[first + 8 : first + size].rstrip(b"\0").decode("utf-8", "replace")


def count_voxels(path: str | os.PathLike[str]) -> int:
    """Voxels that a volume's header claims; 0 of one that cannot be read, for `read_image` will say why."""
    try:
        return math.prod(parse_header(_start(Path(path), MAX_BYTES), Path(path)).shape)
    except (InputError, OSError):
        return 0


def refuse_replacing_scan(path: str | os.PathLike[str]) -> None:
    """Refuse a label map's name that a scan has already; another label map, or what is no NIfTI file, may go.

    Raises:
        InputError: There is a NIfTI file whose voxels are not uint8, which those of our label maps always are.
    """
    name = Path(path)
    try:
        is_labels = stores_uint8(_start(name, MAX_BYTES), name)
    except (InputError, OSError):  # nothing there, or no NIfTI file; what cannot be written is refused elsewhere
        return
    if not is_labels:
        raise InputError(f"{path}: would replace what may be a scan, not uint8 labels; choose another name")


def write_labels(
    path: str | os.PathLike[str],
    data: npt.NDArray[np.uint8],  # [X, Y, Z]
    affine: Array,  # [4, 4]
    *,
    organs: Sequence[str] | None = None,
    header: nib.Nifti1Header | None = None,
    note: str | None = None,
) -> None:
    """Write a label map, atomically; same input, same bytes.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        data: [X, Y, Z] uint8.
        affine: [4, 4] voxel index to millimetres.
        organs: The organs' names; where they are given, a label value above their number is refused.
        header: A header (of the scan) whose qform, sform and units are copied bit for bit. Without one, sform
            and qform are made from ``affine``.
        note: Text to keep inside the file, as a NIfTI header extension of the kind "comment"; see `read_note`.

    Raises:
        InputError: ``path`` cannot be written.
        ValueError: ``data`` is not [X, Y, Z] uint8, a value has no organ, or ``affine`` is not ``header``'s.
    """
    if organs is not None and data.size and int(data.max()) > len(organs):
        raise ValueError(f"label value {int(data.max())} has no organ among {len(organs)}")
    extension = b"" if note is None else _extension(note)
    _write(path, data, np.dtype(np.uint8), affine, header, pack_labels, extension)


def write_image(
    path: str | os.PathLike[str],
    data: npt.NDArray[np.int16],  # [X, Y, Z]
    affine: Array,  # [4, 4]
    *,
    header: nib.Nifti1Header | None = None,
) -> None:
    """Write a CT scan, atomically; same input, same bytes.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        data: [X, Y, Z] int16 HU.
        affine: [4, 4] voxel index to millimetres.
        header: As for `write_labels`.

    Raises:
        InputError: ``path`` cannot be written.
        ValueError: ``data`` is not [X, Y, Z] int16 or ``affine`` is not ``header``'s.
    """
    _write(path, data, np.dtype(np.int16), affine, header, pack_image)


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """Refuse a name that is not one of a NIfTI file.

    Raises:
        InputError: The name ends neither in ``.nii.gz`` nor in ``.nii``.
    """
    name = Path(path)
    if stem(name.name) is None:
        raise InputError(f"{name}: not named like a NIfTI file; give a name that ends in .nii.gz or .nii")
    return name


def _start(path: Path, size: int) -> bytes:
    """The first bytes of a decompressed file: at least so many, if it has them."""
    check_readable(path)
    with open(path, "rb") as file:
        blocks = inflate(file, path) if _zipped(file, path) else iter(lambda: file.read(_READ_BYTES), b"")
        start = b""
        while len(start) < size and (block := next(blocks, b"")):
            start += block
    return start


def _named_gz(path: Path) -> bool:
    return path.name.strip().lower().endswith(".gz")


def _zipped(file: BinaryIO, path: Path) -> bool:
    """Whether a file, at its start, is gzip: what it begins with decides, and the name where that is neither."""
    start = file.read(4)
    file.seek(0)
    return start.startswith(MAGIC) or (_named_gz(path) and not is_header(start))


def _read(path: str | os.PathLike[str], kind: Kind, digest: Digest | None) -> Volume:
    """A volume, read only after every claim that can be checked has been."""
    name = Path(path)
    refuse_dicom(name)
    check_readable(name)
    if stem(name.name) is None:
        raise InputError(f"{name}: not named like a NIfTI file; convert it to .nii.gz")
    try:
        with open(name, "rb") as file:
            read = _read_zipped if _zipped(file, name) else _read_plain
            size = os.fstat(file.fileno()).st_size
            header, data = read(file if digest is None else _Hashed(file, digest), size, name, kind)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({reason(error)}); check its permissions") from error
    except MemoryError as error:
        raise InputError(f"{name}: does not fit into this machine's memory; free some, or crop the scan") from error
    return Volume(data, header.affine, name, header.nifti, header.warnings)


def _read_plain(file: Readable, size: int, path: Path, kind: Kind) -> tuple[Header, Array]:
    start = file.read(MAX_BYTES)
    header = parse_header(start, path)
    _check_length(header, size, path)
    start += file.read(max(0, header.offset - len(start)))
    voxels = Voxels(header, path, kind)
    voxels.add(start[header.offset :])
    length = len(start)
    while block := file.read(_READ_BYTES):  # to the end, with what stands behind the voxels: it is hashed, too
        length += len(block)
        voxels.add(block)
    if not voxels.complete:
        _check_length(header, length, path)  # again: the file may be cut while it is read
    return header, voxels.array()


def _read_zipped(file: Readable, size: int, path: Path, kind: Kind) -> tuple[Header, Array]:
    header: Header | None = None
    start = b""
    length = skip = 0  # of what was read, and of the bytes before the first voxel that are still to come
    for block in inflate(file, path):
        length += len(block)
        if header is None:
            start += block
            if len(start) < MAX_BYTES:
                continue
            header, block, start = parse_header(start[:MAX_BYTES], path), start, b""
            _check_ratio(header, size, path)
            voxels, skip = Voxels(header, path, kind), header.offset
        skipped = min(skip, len(block))
        skip -= skipped
        voxels.add(memoryview(block)[skipped:])
        if length > header.offset + header.voxel_bytes:
            _check_length(header, length, path)
    if header is None:
        header = parse_header(start, path)
        voxels = Voxels(header, path, kind)
        voxels.add(start[header.offset :])
    _check_length(header, length, path)
    return header, voxels.array()


def _check_ratio(header: Header, size: int, path: Path) -> None:
    wanted = header.offset + header.voxel_bytes
    if wanted > MAX_RATIO * size:
        raise InputError(
            f"{path}: cut short or its header lies, {size} bytes of gzip cannot hold {wanted}; copy it again"
        )


def _check_length(header: Header, size: int, path: Path) -> None:
    """Refuse less than the header claims, and a whole slice more: padding is legal, another shape is not."""
    wanted = header.offset + header.voxel_bytes
    text = " x ".join(str(n) for n in header.shape)
    if size < wanted:
        raise InputError(f"{path}: cut short, {text} voxels take {wanted} bytes and it has {size}; copy it again")
    if size >= wanted + header.slice_bytes:
        raise InputError(f"{path}: has more voxels than the {text} of its header; repair one of them")


def _write(
    path: str | os.PathLike[str],
    data: Array,
    dtype: np.dtype[Any],
    affine: Array,
    like: nib.Nifti1Header | None,
    pack: Callable[[IO[bytes]], AbstractContextManager[Any]],
    extension: bytes = b"",
) -> None:
    name = check_suffix(path)
    if data.ndim != 3 or data.dtype != dtype:
        raise ValueError(f"data is {data.dtype} {data.shape}, {dtype} [X, Y, Z] is wanted")
    header = _header(data.shape, dtype, np.asarray(affine, dtype=np.float64), like)
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4 + len(extension)
    start = header.binaryblock + (b"\1\0\0\0" if extension else b"\0\0\0\0") + extension
    with atomic_path(name) as temporary, open(temporary, "wb") as file:
        with pack(file) if _named_gz(name) else nullcontext(file) as packed:
            _write_content(packed, start, data)


def _extension(note: str) -> bytes:
    """A header extension: its size, a multiple of 16, its kind, its content."""
    content = note.encode()
    size = 8 + len(content) + -(8 + len(content)) % 16
    return struct.pack("=2i", size, _COMMENT) + content.ljust(size - 8, b"\0")


def _write_content(file: IO[bytes], start: bytes, data: Array) -> None:
    file.write(start)
    step = max(1, _BLOCK_VOXELS // max(1, data.shape[0] * data.shape[1]))
    for first in range(0, data.shape[2], step):
        block = np.ravel(data[..., first : first + step], order="F")  # a view where the voxels lie like that already
        file.write(block.view(np.uint8).data)


def _header(
    shape: tuple[int, ...], dtype: np.dtype[Any], affine: Array, like: nib.Nifti1Header | None
) -> nib.Nifti1Header:
    header = nib.Nifti1Header() if like is None else type(like)()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_slope_inter(1.0, 0.0)
    if like is not None:
        if not np.array_equal(affine, header_geometry(like)[0]):
            raise ValueError("the affine is not that of the header")
        for name in _GEOMETRY_FIELDS:
            header[name] = like[name]
        header["pixdim"][:4] = like["pixdim"][:4]
        return header
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    if not same_grid(affine, header.get_qform(), shape):  # a quaternion knows no shear
        header["qform_code"] = 0
    return header
