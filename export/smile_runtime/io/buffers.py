"""Memory for whole volumes, straight from the system and straight back to it."""

import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike, *, order: Any = "C") -> npt.NDArray[Any]:
    """An array of zeros whose pages take no memory before they are written, and none after it is gone.

    The C library serves arrays below 32 MB from its heap once one of that size was freed. Scan after scan leaves gaps
    there, which were measured at two bytes a voxel in a folder.

    Raises:
        MemoryError: There is not as much memory.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size} bytes") from error
    return np.frombuffer(pages, dtype).reshape(shape, order=order)
