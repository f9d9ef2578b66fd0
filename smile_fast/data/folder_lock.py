"""One writer a folder: a store or a run that two processes write at once would be a mixture of both."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smile_runtime.errors import InputError

LOCK = ".lock"
"""Name of the file in the folder. It is there while the folder is written; a killed process leaves it, unlocked."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who writes a folder until the block ends.

    The kernel holds the lock, and lets go of it whenever and however this process ends. Where a folder cannot be
    written, or its file system knows no locks, the block runs without one.

    Args:
        folder: where it is; whoever wants to lock it has made it.

    Raises:
        InputError: another process writes it now.
    """
    path = Path(folder) / LOCK
    descriptor = _acquire(path)
    try:
        yield
    finally:
        if descriptor is not None:
            if _is_at(descriptor, path):  # not where the folder was removed, and made again by another process
                _remove(path)  # first: once it is let go, it may be another's
            os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """The open and locked file, None where there are no locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # who cannot write there will say so, about a file that matters
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor  # else its last owner has removed it since it was opened: once more
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{path.parent}: another smile-fast process is writing there now; wait until it has ended, or give "
                "another folder"
            ) from None
        except OSError:  # ENOLCK, ENOTSUP, EINVAL: what file systems without locks say
            _remove(path)
            os.close(descriptor)
            return None
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):  # an empty file that stays is in nobody's way
        path.unlink()
