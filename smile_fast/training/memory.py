"""What a training says that its machine has too little memory for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from smile_runtime.errors import InputError

_SAID = ("out of memory", "can't allocate memory", "not enough memory")  # by CUDA and by torch's allocator of the host


@contextmanager
def enough_memory(run: Path) -> Iterator[None]:
    """Turn what a device or the host says when it runs out of memory into one sentence.

    Args:
        run: folder of the training.

    Raises:
        InputError: there is too little.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(words in said for words in _SAID):
            raise
        what = "the GPU" if "cuda" in said else "this machine"
        raise InputError(
            f"{run}: {what} has not enough memory for this training; train with a smaller --batch-size or --crop-size, "
            "or start fewer processes"
        ) from error
