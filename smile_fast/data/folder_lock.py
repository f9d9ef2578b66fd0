"""One writer a folder, or any number of readers: what two processes write at once would be a mixture of both."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smile_runtime.errors import InputError

LOCK = ".lock"
"""Name of the file in the folder. It is there while the folder is written; a killed process leaves it, unlocked."""


@contextmanager
def locked(folder: Path, lock: str = LOCK) -> Iterator[bool]:
    """Be the only one who writes a folder until the block ends.

    The kernel holds the lock, and lets go of it whenever and however this process ends. Where a folder cannot be
    written, or its file system knows no locks, the block runs without one.

    Args:
        folder: where it is; whoever wants to lock it has made it.
        lock: name of the lock in it.

    Yields:
        Whether there is a lock.

    Raises:
        InputError: another process has it, for itself or shared.
    """
    with _held(Path(folder) / lock, fcntl.LOCK_EX) as descriptor:
        yield descriptor is not None


@contextmanager
def shared(folder: Path, lock: str = LOCK) -> Iterator[bool]:
    """Keep whoever wants a folder for itself out of it until the block ends; others may share it.

    The lock's file stays behind: it may be another's already.

    Args:
        folder: where it is.
        lock: name of the lock in it.

    Yields:
        Whether there is a lock: a folder may not be writable, or its file system may know none.

    Raises:
        InputError: another process has the folder for itself now.
    """
    with _held(Path(folder) / lock, fcntl.LOCK_SH) as descriptor:
        yield descriptor is not None


@contextmanager
def _held(path: Path, kind: int) -> Iterator[int | None]:
    descriptor = _acquire(path, kind)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            # Not where the folder was removed, and made again by another process.
            if kind == fcntl.LOCK_EX and _is_at(descriptor, path):
                _remove(path)  # first: once it is let go, it may be another's
            os.close(descriptor)


def _acquire(path: Path, kind: int) -> int | None:
    """The open and locked file, None where there are no locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # who cannot write there will say so, about a file that matters
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor  # else its last owner has removed it since it was opened: once more
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{path.parent}: another smile-fast process is at work there now; wait until it has ended, or give "
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
