"""Read and write NIfTI volumes; what a header claims is believed only when the bytes are there."""

import gzip
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt

from smile_runtime._gzip import MAX_RATIO, inflate
from smile_runtime._nifti_header import MAX_BYTES, Header, parse_header
from smile_runtime.errors import InputError
from smile_runtime.files import atomic_path, check_readable, reason

Array = npt.NDArray[Any]

SUFFIXES = (".nii.gz", ".nii")
_BLOCK_VOXELS = 2**20  # converted at a time, so that a conversion's temporaries stay at a few MB
_COMPRESSION = 1  # a label map of 512x512x150: 0.13 s and 1.6 MB, against 0.40 s and 1.0 MB at level 6
_GEOMETRY_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
    "xyzt_units",
)


@dataclass(frozen=True)
class Volume:
    """A volume as its file has it.

    Attributes:
        data: [X, Y, Z] in the file's own axis order, Fortran-contiguous.
        affine: [4, 4] float64, voxel index to millimetres (right, anterior, superior); finite and invertible.
        path: Where it came from.
        header: The file's header, so that a label map can be written on exactly the same grid.
    """

    data: Array
    affine: npt.NDArray[np.float64]
    path: Path
    header: nib.Nifti1Header | None = field(default=None, repr=False)


def read_image(path: str | os.PathLike[str]) -> Volume:
    """Read a CT scan.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file of integers or real numbers, in HU after the file's own scaling.

    Returns:
        The volume; data int16 HU, rounded to the nearest integer and clipped to the range of int16.

    Raises:
        InputError: The file is missing, damaged or cut short, its header lies, it is not one volume of
            real numbers in three dimensions, or a voxel, a scale or the affine is NaN or infinite.
    """
    header, raw, name = _read(path)
    if header.dtype == np.int16 and header.dtype.isnative and not header.scaled:
        return Volume(raw, header.affine, name, header.nifti)
    data = np.empty(header.shape, np.int16, order="F")
    limits = np.iinfo(np.int16)
    for block, values in _blocks(raw, header, name):
        data[..., block] = np.clip(np.rint(values), limits.min, limits.max)
    return Volume(data, header.affine, name, header.nifti)


def read_labels(path: str | os.PathLike[str]) -> Volume:
    """Read a label map.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file of any integer or real type that holds whole numbers in 0..255.

    Returns:
        The volume; data uint8.

    Raises:
        InputError: As `read_image`, or a voxel is not a whole number in 0..255.
    """
    header, raw, name = _read(path)
    if header.dtype == np.uint8 and not header.scaled:
        return Volume(raw, header.affine, name, header.nifti)
    data = np.empty(header.shape, np.uint8, order="F")
    for block, values in _blocks(raw, header, name):
        low, high = values.min(), values.max()
        if low < 0 or high > 255:
            raise InputError(f"{name} has label value {low if low < 0 else high:g}: 0..255 is wanted")
        data[..., block] = values
        if (data[..., block] != values).any():
            raise InputError(f"{name} has label values that are not whole numbers: it is not a label map")
    return Volume(data, header.affine, name, header.nifti)


def write_labels(
    path: str | os.PathLike[str],
    data: npt.NDArray[np.uint8],  # [X, Y, Z]
    affine: Array,  # [4, 4]
    *,
    organs: Sequence[str] | None = None,
    header: nib.Nifti1Header | None = None,
) -> None:
    """Write a label map, atomically; same input, same bytes.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        data: [X, Y, Z] uint8.
        affine: [4, 4] voxel index to millimetres.
        organs: The organs' names; where they are given, a label value above their number is refused.
        header: A header (of the scan) whose qform, sform and units are copied bit for bit. Without one, sform
            and qform are made from ``affine``.

    Raises:
        InputError: ``path`` cannot be written.
        ValueError: ``data`` is not [X, Y, Z] uint8, a value has no organ, or ``affine`` is not ``header``'s.
    """
    if organs is not None and data.size and int(data.max()) > len(organs):
        raise ValueError(f"label value {int(data.max())} has no organ among {len(organs)}")
    _write(path, data, np.dtype(np.uint8), affine, header)


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
    _write(path, data, np.dtype(np.int16), affine, header)


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """Refuse a name that is not one of a NIfTI file.

    Raises:
        InputError: The name ends neither in ``.nii.gz`` nor in ``.nii``.
    """
    name = Path(path)
    if not name.name.lower().endswith(SUFFIXES):
        raise InputError(f"{name} is not named like a NIfTI file: a name that ends in .nii.gz or .nii is wanted")
    return name


def _read(path: str | os.PathLike[str]) -> tuple[Header, Array, Path]:
    """Header and stored values [X, Y, Z], read only after every claim that can be checked has been."""
    name = check_suffix(path)
    check_readable(name)
    try:
        with open(name, "rb") as file:
            zipped = name.name.lower().endswith(".gz")
            header, raw = (_read_zipped if zipped else _read_plain)(file, name)
    except OSError as error:
        raise InputError(f"cannot read {name}: {reason(error)}") from error
    except MemoryError as error:
        raise InputError(f"{name} does not fit into this machine's memory: free some, or crop the scan") from error
    if not raw.flags.aligned:  # voxels that begin at an odd byte: legal, and slow or refused elsewhere
        raw = raw.copy()
    return header, raw.reshape(header.shape, order="F"), name


def _read_plain(file: BinaryIO, path: Path) -> tuple[Header, Array]:
    header = parse_header(file.read(MAX_BYTES), path)
    _check_length(header, os.fstat(file.fileno()).st_size, path)
    raw = np.fromfile(
        file, header.dtype, header.voxel_bytes // header.dtype.itemsize, offset=header.offset - file.tell()
    )
    return header, raw


def _read_zipped(file: BinaryIO, path: Path) -> tuple[Header, Array]:
    header = None
    content = bytearray()  # grows with what was really there, without copies: realloc moves pages
    for piece in inflate(file, path):
        content += piece
        if header is None and len(content) >= MAX_BYTES:
            header = parse_header(bytes(content[:MAX_BYTES]), path)
            _check_ratio(header, os.fstat(file.fileno()).st_size, path)
        if header is not None and len(content) > header.offset + header.voxel_bytes:
            _check_length(header, len(content), path)
    header = header or parse_header(bytes(content), path)
    _check_length(header, len(content), path)
    count = header.voxel_bytes // header.dtype.itemsize
    return header, np.frombuffer(content, header.dtype, count, header.offset)


def _check_ratio(header: Header, size: int, path: Path) -> None:
    wanted = header.offset + header.voxel_bytes
    if wanted > MAX_RATIO * size:
        raise InputError(
            f"{path} is cut short or its header lies: {size} bytes of gzip cannot hold the {wanted} it claims"
        )


def _check_length(header: Header, size: int, path: Path) -> None:
    """Refuse less than the header claims, and a whole slice more: padding is legal, another shape is not."""
    wanted = header.offset + header.voxel_bytes
    text = " x ".join(str(n) for n in header.shape)
    if size < wanted:
        raise InputError(f"{path} is cut short: {text} voxels take {wanted} bytes and it has {size}")
    if size >= wanted + header.slice_bytes:
        raise InputError(f"{path} has more voxels than the {text} of its header: one of them is wrong")


def _blocks(raw: Array, header: Header, path: Path) -> Iterator[tuple[slice, Array]]:
    """Scaled, finite values [X, Y, n] of a few slices at a time."""
    step = max(1, _BLOCK_VOXELS // (header.shape[0] * header.shape[1]))
    for start in range(0, header.shape[2], step):
        block = slice(start, start + step)
        values = raw[..., block]
        if header.scaled:
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
                values = values.astype(np.float64) * header.slope + header.intercept
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            x, y, z = (int(axis[0]) for axis in np.nonzero(~np.isfinite(values)))
            raise InputError(f"{path} has a NaN or infinite voxel at ({x}, {y}, {z + start}): repair the scan")
        yield block, values


def _write(
    path: str | os.PathLike[str],
    data: Array,
    dtype: np.dtype[Any],
    affine: Array,
    like: nib.Nifti1Header | None,
) -> None:
    name = check_suffix(path)
    if data.ndim != 3 or data.dtype != dtype:
        raise ValueError(f"data is {data.dtype} {data.shape}, {dtype} [X, Y, Z] is wanted")
    header = _header(data.shape, dtype, np.asarray(affine, dtype=np.float64), like)
    with atomic_path(name) as temporary, open(temporary, "wb") as file:
        if name.name.lower().endswith(".gz"):  # no name and no time inside: same input, same bytes
            with gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as zipped:
                _write_content(zipped, header, data)
        else:
            _write_content(file, header, data)


def _write_content(file: IO[bytes] | gzip.GzipFile, header: nib.Nifti1Header, data: Array) -> None:
    file.write(header.binaryblock + b"\0\0\0\0")
    step = max(1, _BLOCK_VOXELS // max(1, data.shape[0] * data.shape[1]))
    for start in range(0, data.shape[2], step):
        file.write(data[..., start : start + step].tobytes(order="F"))


def _header(
    shape: tuple[int, ...], dtype: np.dtype[Any], affine: Array, like: nib.Nifti1Header | None
) -> nib.Nifti1Header:
    header = nib.Nifti1Header() if like is None else type(like)()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    if like is not None:
        if not np.array_equal(affine, like.get_best_affine()):
            raise ValueError("the affine is not that of the header")
        for name in _GEOMETRY_FIELDS:
            header[name] = like[name]
        header["pixdim"][:4] = like["pixdim"][:4]
        return header
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    sheared = not np.allclose(header.get_qform(), affine, rtol=0, atol=1e-3)  # mm; a quaternion knows no shear
    if sheared:
        header["qform_code"] = 0
    return header
