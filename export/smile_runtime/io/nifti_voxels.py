"""From the bytes of a NIfTI file to voxels of one type, block by block: the file is never held as a whole."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from smile_runtime.errors import InputError
from smile_runtime.io.buffers import zeros
from smile_runtime.io.nifti_header import Header

Array = npt.NDArray[Any]

_ROUNDING = 1e-3  # of a label: programs that store labels with a slope give back 1.00000002 for 1


class Kind(ABC):
    """What a volume is read as."""

    dtype: ClassVar["np.dtype[Any]"]

    def as_stored(self, header: Header) -> bool:
        """Whether the stored bytes are the wanted ones already."""
        return header.dtype == self.dtype and header.dtype.isnative and not header.scaled

    @abstractmethod
    def convert(self, values: Array, path: Path, place: Callable[[int], str]) -> Array:
        """Finite values [n] as `dtype`; an `InputError` names the n-th, which cannot be, and its `place(n)`."""


class HU(Kind):
    """int16 HU, rounded to the nearest integer and clipped to the range of int16."""

    dtype = np.dtype(np.int16)

    def convert(self, values: Array, path: Path, place: Callable[[int], str]) -> Array:
        """See `Kind`."""
        limits = np.iinfo(np.int16)
        whole = np.rint(values) if values.dtype.kind == "f" else values
        return whole.clip(limits.min, limits.max).astype(np.int16)


class Labels(Kind):
    """uint8 labels: whole numbers in 0..255, up to what scaling in floating point leaves of them."""

    dtype = np.dtype(np.uint8)

    def convert(self, values: Array, path: Path, place: Callable[[int], str]) -> Array:
        """See `Kind`."""
        whole = values
        if values.dtype.kind == "f":
            whole = np.rint(values)
            if (broken := np.abs(values - whole) > _ROUNDING).any():
                n = int(broken.argmax())
                raise InputError(
                    f"{path}: has label value {values[n]:g} at {place(n)}, which is no whole number; give a label map"
                )
        if (beyond := (whole < 0) | (whole > 255)).any():
            n = int(beyond.argmax())
            raise InputError(f"{path}: has label value {whole[n]:g} at {place(n)}; give whole numbers in 0..255")
        return whole.astype(np.uint8)


class Voxels:
    """Collects the voxels of a file as they are read.

    Args:
        header: Checked claims of the file.
        path: Its name, for messages.
        kind: What the voxels are read as.
    """

    def __init__(self, header: Header, path: Path, kind: Kind) -> None:
        self._header, self._path, self._kind = header, path, kind
        self._as_stored = kind.as_stored(header)
        self._left = header.voxel_bytes
        self._begun = b""  # of a voxel whose other bytes are in the next block
        # Memory is taken as pages are written: with what was really there, whatever the header claims.
        self._voxels = zeros(header.shape, kind.dtype, order="F")
        self._flat = self._voxels.reshape(-1, order="F")
        self._done = 0  # bytes if they are taken as stored, voxels otherwise

    @property
    def complete(self) -> bool:
        """Whether all voxels of the header are there."""
        return not self._left

    def add(self, block: bytes | memoryview) -> None:
        """Take the next bytes of the file; those behind the last voxel are padding.

        Raises:
            InputError: A voxel is NaN or infinite, or no such label.
        """
        data = memoryview(block)[: self._left]
        self._left -= len(data)
        if self._as_stored:
            self._flat.view(np.uint8)[self._done : self._done + len(data)] = np.frombuffer(data, np.uint8)
            self._done += len(data)
            return
        data = memoryview(self._begun + data)
        whole = len(data) - len(data) % self._header.dtype.itemsize
        self._begun = bytes(data[whole:])
        if whole:
            values = self._finite(np.frombuffer(data[:whole], self._header.dtype))
            self._flat[self._done : self._done + len(values)] = self._kind.convert(values, self._path, self._place)
            self._done += len(values)

    def array(self) -> Array:
        """All voxels [X, Y, Z], Fortran-contiguous."""
        return self._voxels

    def _finite(self, stored: Array) -> Array:
        values = stored
        if self._header.scaled:
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
                values = stored.astype(np.float64) * self._header.slope + self._header.intercept
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            place = self._place(int(np.isfinite(values).argmin()))
            raise InputError(f"{self._path}: has a NaN or infinite voxel at {place}; repair the scan")
        return values

    def _place(self, n: int) -> str:
        """Where the n-th voxel of the block at work lies, (x, y, z)."""
        x, y, z = (int(i) for i in np.unravel_index(self._done + n, self._header.shape, order="F"))
        return f"({x}, {y}, {z})"
