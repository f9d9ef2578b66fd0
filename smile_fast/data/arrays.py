"""Compressed arrays of axial slices: the one door through which `.b2nd` files are written, opened and decoded."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path

_DTYPES = (np.dtype(np.int16), np.dtype(np.uint8))


def write_array(path: Path, array: NDArray[Any]) -> str:
    """Write an array to a `.b2nd` file, atomically; the same array gives the same bytes.

    Args:
        path: the file.
        array: [D, H, W] int16 or uint8.

    Returns:
        SHA-256 of the file's bytes: of those that were to be written, not of what the disk made of them.

    Raises:
        InputError: the file cannot be written.
        ValueError: another dtype or rank, or an empty array.
    """
    frame = pack_array(array)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(frame)
    return hashlib.sha256(frame).hexdigest()


def pack_array(array: NDArray[Any]) -> bytes:
    """Compress an array [D, H, W] to the bytes of a `.b2nd` file.

    Raises:
        ValueError: another dtype than int16 or uint8, another rank, or an empty array.
    """
    if array.ndim != 3 or 0 in array.shape or array.dtype not in _DTYPES:
        raise ValueError(f"array must be int16 or uint8 [D, H, W], not empty, got {array.dtype} {array.shape}")
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(1, *array.shape[1:]),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
    )
    frame: bytes = packed.to_cframe()
    return frame


def unpack_array(frame: bytes) -> NDArray[Any]:
    """The inverse of `pack_array`."""
    return np.asarray(blosc2.ndarray_from_cframe(frame)[:])


def open_array(path: Path, command: str = "smile-fast prepare") -> Any:
    """Open a `.b2nd` file; slices are decompressed when they are indexed.

    Args:
        path: the file.
        command: what wrote it, for the message.

    Returns:
        A blosc2.NDArray, read-only. It holds a file descriptor while it lives: keep few.

    Raises:
        InputError: the file is missing or no such array.
    """
    path = Path(path)
    try:
        array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run '{command}' again") from None
    except Exception as error:  # a damaged frame surfaces as five different exception types
        raise InputError(f"{path}: not a readable blosc2 array ({error}); run '{command}' again") from error
    if not isinstance(array, blosc2.NDArray) or array.ndim != 3 or array.dtype not in _DTYPES:
        raise InputError(f"{path}: not an int16 or uint8 array [D, H, W]; run '{command}' again")
    return array


def read_slices(
    array: Any, path: Path, slices: slice | Sequence[int] = slice(None), command: str = "smile-fast prepare"
) -> NDArray[Any]:
    """Decode axial slices of an array that `open_array` opened: damage shows only here, slice by slice.

    Args:
        array: the open array [D, H, W].
        path: its file, for the message.
        slices: which ones; a sequence is read one by one, for a chunk is a slice.
        command: what wrote the file, for the message.

    Returns:
        [n, H, W] in memory.

    Raises:
        InputError: the file is damaged.
    """
    try:
        if isinstance(slices, slice):
            return np.asarray(array[slices])
        return np.stack([array[int(z)] for z in slices])
    except RuntimeError as error:
        raise InputError(f"{path}: damaged, it cannot be decompressed; run '{command}' again") from error
