"""Compressed arrays of axial slices: the one door through which `.b2nd` files are written, read and verified.

NAME-DIGEST.b2nd is a blosc2 frame of one chunk a slice, which any blosc2 reads, and behind it a table:

frame       what blosc2 reads; it ends before the table and knows nothing of it
rows        for each slice: offset u64, length u32 and CRC-32 u32 of its chunk; length 0 is a slice of zeros
SHA-256     of the frame
end         format, kind of voxel, D, H, W

All little-endian. The file's digest is the SHA-256 of all that follows the frame: who knows it can verify any slice by
reading that slice alone, and the whole file by reading it once. Slices are read by `pread`: no file is mapped, for
some mounts cannot, and a mapped file that somebody cuts ends the process.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.chunks import pack_slice
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, reason
from smile_runtime.io.gzip import inflater

_DTYPES: "dict[bytes, np.dtype[Any]]" = {b"i2": np.dtype(np.int16), b"u1": np.dtype(np.uint8)}
_KINDS = {dtype: kind for kind, dtype in _DTYPES.items()}
_ROW = struct.Struct("<QII")  # offset, length, CRC-32
_END = struct.Struct("<8s2s2xIII")  # format, kind of voxel, D, H, W
_FORMAT = b"smilefa1"
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAMED = 16  # hexadecimal digits of the digest in the file's name
_FRAME_HEADER = struct.Struct(">i")  # its length, at byte 11 of a frame
_BLOCK_BYTES = 2**20
TABLES_KEPT = 4096  # kept in memory, 16 bytes a slice: image and labels of 2,000 cases
_PREPARE = "smile-fast prepare --rehash"  # which reads what looks as it was

Layout = tuple["np.dtype[Any]", tuple[int, int, int]]
"""dtype and shape [D, H, W]."""


def array_name(name: str, digest: str) -> str:
    """The file of an array: its name, and so much of its digest that another array has another file."""
    return f"{name}-{digest[:_NAMED]}.b2nd"


def write_array(folder: Path, name: str, array: NDArray[Any]) -> str:
    """Write an array to its file in a folder, atomically; the same array gives the same bytes and the same name.

    Args:
        folder: where; it exists.
        name: what the array is, the first part of the file's name; see `array_name`.
        array: [D, H, W] int16 or uint8.

    Returns:
        The file's digest: of the bytes that were to be written, not of what the disk made of them.

    Raises:
        InputError: the file cannot be written.
        ValueError: another dtype or rank, or an empty array.
    """
    frame, chunks = _pack(array)
    table = _make_table(frame, chunks, array)
    digest = hashlib.sha256(table).hexdigest()
    with atomic_path(Path(folder) / array_name(name, digest)) as temporary:
        with open(temporary, "wb") as file:
            file.write(frame)
            file.write(table)
    return digest


def pack_array(array: NDArray[Any]) -> bytes:
    """Compress an array [D, H, W] to a blosc2 frame.

    Raises:
        ValueError: another dtype than int16 or uint8, another rank, or an empty array.
    """
    return _pack(array)[0]


def unpack_array(frame: bytes) -> NDArray[Any]:
    """The inverse of `pack_array`."""
    return np.asarray(blosc2.ndarray_from_cframe(frame)[:])


def read_slices(
    path: str | os.PathLike[str],
    digest: str,
    slices: slice | Sequence[int] = slice(None),
    *,
    layout: Layout | None = None,
    command: str = _PREPARE,
) -> NDArray[Any]:
    """Read some axial slices of an array, each verified.

    Args:
        path: the file.
        digest: what `write_array` returned.
        slices: which ones.
        layout: dtype and shape that the array must have.
        command: what wrote the file, for the message.

    Returns:
        [n, H, W] in memory.

    Raises:
        InputError: the file is missing, or is not what was written; or has not that layout.
    """
    table = _known_table(path, digest, layout, command)
    depth, height, width = table.shape
    wanted = range(*slices.indices(depth)) if isinstance(slices, slice) else [_position(z, depth) for z in slices]
    read = np.empty((len(wanted), height, width), table.dtype)
    descriptor = _open(path, command)
    try:
        for target, z in zip(read, wanted, strict=True):
            read_slice(descriptor, path, table, z, target, command)
    finally:
        os.close(descriptor)
    return read


def verify_array(
    path: str | os.PathLike[str], digest: str, *, layout: Layout | None = None, command: str = _PREPARE
) -> None:
    """Read a whole file and make sure that every byte of it is what was written.

    Args:
        path: the file.
        digest: what `write_array` returned.
        layout: dtype and shape that the array must have.
        command: what wrote the file, for the message.

    Raises:
        InputError: see `read_slices`.
    """
    descriptor = _open(path, command)
    try:
        table = _read_table(descriptor, path, digest, command)
        _check_layout(path, table, layout, command)
        left, found = table.frame_bytes, hashlib.sha256()
        while left > 0 and (block := os.pread(descriptor, min(left, _BLOCK_BYTES), table.frame_bytes - left)):
            found.update(block)
            left -= len(block)
    except OSError as error:
        raise _unreadable(path, error, command) from error
    finally:
        os.close(descriptor)
    if found.digest() != table.frame_digest:
        raise _damaged(path, "its bytes have not the checksum that they were written with", command)


@dataclass(frozen=True, slots=True)
class _Table:
    """What lies behind the frame of a file, verified.

    Attributes:
        dtype: of the voxels. shape: [D, H, W].
        rows: see the top of this module.
        frame_bytes: length of the frame. frame_digest: its SHA-256.
    """

    dtype: "np.dtype[Any]"
    shape: tuple[int, int, int]
    rows: bytes
    frame_bytes: int
    frame_digest: bytes


def _pack(array: NDArray[Any]) -> tuple[bytes, list[bytes]]:
    """Compress an array to a frame, and the chunks in it; a slice of zeros has an empty one."""
    if array.ndim != 3 or 0 in array.shape or array.dtype not in _KINDS:
        raise ValueError(f"array must be int16 or uint8 [D, H, W], not empty, got {array.dtype} {array.shape}")
    one_slice = (1, *array.shape[1:])
    packed = blosc2.zeros(
        array.shape,
        array.dtype,
        chunks=one_slice,
        blocks=one_slice,  # a chunk is a slice in C order, not padded, and decodes faster than one of many blocks
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
        contiguous=True,  # the frame grows chunk by chunk; made of scattered chunks in the end, it takes twice as long
    )
    chunks = [pack_slice(plane) if plane.any() else b"" for plane in array]
    for z, chunk in enumerate(chunks):
        if chunk:
            packed.schunk.update_chunk(z, chunk)
    return packed.to_cframe(), chunks


def _make_table(frame: bytes, chunks: Sequence[bytes], array: NDArray[Any]) -> bytes:
    """Describe the chunks of a frame: they follow one another behind its header, in order."""
    rows = []
    (offset,) = _FRAME_HEADER.unpack_from(frame, 11)
    for z, chunk in enumerate(chunks):
        if frame[offset : offset + len(chunk)] != chunk:
            raise ValueError(f"blosc2 {blosc2.__version__} keeps chunk {z} of a frame in another place")
        rows.append(_ROW.pack(offset, len(chunk), inflater.crc32(chunk)))
        offset += len(chunk)
    end = _END.pack(_FORMAT, _KINDS[array.dtype], *array.shape)
    return b"".join([*rows, hashlib.sha256(frame).digest(), end])


def _position(z: int, depth: int) -> int:
    index = int(z)
    if not -depth <= index < depth:
        raise IndexError(f"slice {index} of an array of {depth}")
    return index % depth


def _open(path: str | os.PathLike[str], command: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name must not wait for its writer
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run '{command}' again") from None
    except OSError as error:
        raise _unreadable(path, error, command) from error


def _known_table(path: str | os.PathLike[str], digest: str, layout: Layout | None, command: str) -> _Table:
    table = table_of(os.fspath(path), digest, command)
    _check_layout(path, table, layout, command)
    return table


@lru_cache(TABLES_KEPT)
def table_of(path: str, digest: str, command: str) -> _Table:
    """Read the table of a file once: what it says of a chunk holds for whatever lies there later."""
    descriptor = _open(path, command)
    try:
        return _read_table(descriptor, path, digest, command)
    finally:
        os.close(descriptor)


def _read_table(descriptor: int, path: str | os.PathLike[str], digest: str, command: str) -> _Table:
    try:
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, _END.size, max(0, size - _END.size))
        form, kind, depth, height, width = _END.unpack(end) if len(end) == _END.size else (b"", b"", 0, 0, 0)
        frame_bytes = size - _END.size - _DIGEST_BYTES - _ROW.size * depth
        if form != _FORMAT or frame_bytes <= 0:
            raise _damaged(path, "its end is missing or changed", command)
        table = os.pread(descriptor, size - frame_bytes, frame_bytes)
    except OSError as error:
        raise _unreadable(path, error, command) from error
    if hashlib.sha256(table).hexdigest() != digest:
        raise _damaged(path, "it is not the array that belongs here", command)
    rows, frame_digest = table[: _ROW.size * depth], table[_ROW.size * depth : -_END.size]
    return _Table(_DTYPES[kind], (depth, height, width), rows, frame_bytes, frame_digest)


def _check_layout(path: str | os.PathLike[str], table: _Table, layout: Layout | None, command: str) -> None:
    if layout is not None and (table.dtype, table.shape) != layout:
        dtype, shape = layout
        raise InputError(
            f"{path}: {table.dtype} {table.shape} does not fit the index ({dtype} {shape}); run '{command}' again"
        )


def read_slice(
    descriptor: int,
    path: str | os.PathLike[str],
    table: _Table,
    z: int,
    target: NDArray[Any],  # [H, W]
    command: str,
) -> None:
    """Read a slice of an array into memory."""
    offset, length, checksum = _ROW.unpack_from(table.rows, _ROW.size * z)
    if length == 0:
        target.fill(0)
        return
    try:
        chunk = os.pread(descriptor, length, offset)
    except OSError as error:
        raise _unreadable(path, error, command) from error
    if len(chunk) != length or inflater.crc32(chunk) != checksum:
        raise _damaged(path, f"slice {z} has not the checksum that it was written with", command)
    try:
        blosc2.decompress2(chunk, dst=target, nthreads=1)
    except (ValueError, RuntimeError) as error:
        raise _damaged(path, f"slice {z} cannot be decompressed by blosc2 {blosc2.__version__}", command) from error


def _unreadable(path: str | os.PathLike[str], error: OSError, command: str) -> InputError:
    return InputError(f"{path}: cannot be read ({reason(error)}); run '{command}' again")


def _damaged(path: str | os.PathLike[str], why: str, command: str) -> InputError:
    return InputError(f"{path}: damaged or replaced, {why}; run '{command}' again")
