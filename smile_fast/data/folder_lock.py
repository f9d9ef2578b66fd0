"""One writer a folder, any number of readers, or any number of writers of the same: never a mixture of two things."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from smile_runtime.errors import InputError

LOCK = ".lock"
"""Name of the file in the folder. It is there while the folder is written; a killed process leaves it, unlocked.

A store always has one, for readers who may not make it.
"""
PATIENCE = 10.0
"""Seconds to wait for whoever keeps a lock for a moment only: to sweep a store, say, takes several on a slow disk."""
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_LOOK_AGAIN = 0.1  # seconds


@contextmanager
def locked(folder: Path, lock: str = LOCK, *, stays: bool = False) -> Iterator[bool]:
    """Be the only one who writes a folder until the block ends.

    The kernel holds the lock, and lets go of it whenever and however this process ends. Where a folder cannot be
    written, or its file system knows no locks, the block runs without one.

    Args:
        folder: where it is; whoever wants to lock it has made it.
        lock: name of the lock in it.
        stays: leave its file behind, for others who may not make it.

    Yields:
        Whether there is a lock.

    Raises:
        InputError: another process has it, for itself or shared.
    """
    with _held(Path(folder) / lock, fcntl.LOCK_EX, stays) as descriptor:
        yield descriptor is not None


@contextmanager
def shared(folder: Path, lock: str = LOCK) -> Iterator[bool]:
    """Keep whoever wants a folder for itself out of it until the block ends; others may share it.

    The lock's file stays behind: it may be another's already. Where it cannot be written, one that is there will do.

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
def patiently(lock: Callable[[], AbstractContextManager[bool]]) -> Iterator[bool]:
    """Hold a lock until the block ends; wait for it, up to `PATIENCE`, if others have it.

    Args:
        lock: makes a `locked` or a `shared`; called until one of them can be had.

    Yields:
        Whether there is a lock, see `locked`.

    Raises:
        InputError: others have it for longer than a moment.
    """
    until = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                there = held.enter_context(lock())
                break
            except InputError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_LOOK_AGAIN)
        yield there


def reading(store: Path) -> AbstractContextManager[bool]:
    """Be one of the readers of a store until the block ends: no `prepare` removes a file of it meanwhile.

    Waits for a `prepare` that removes files just now; see `patiently` and `shared`.

    Args:
        store: its folder.
    """
    return patiently(lambda: shared(store))


def leave_lock(folder: Path) -> None:
    """Make the lock's file of a folder, for readers who may not make it.

    Raises:
        OSError: it cannot be made.
    """
    path = Path(folder) / LOCK
    if not path.exists():  # else it may be somebody else's
        path.touch()


_MOMENT_S = 0.02  # between two looks at a lock that its owner keeps for a moment only
_LOOKS = 4


@contextmanager
def joined(folder: Path, lock: str, work: str, refusal: str) -> Iterator[Callable[[], bool]]:
    """Be one of any number of processes that do the same work in a folder, until the block ends.

    Args:
        folder: where it is.
        lock: name of the lock in it.
        work: what is done, one word; it stands in the lock's file for whoever comes.
        refusal: what to say to a process that wants to do other work meanwhile.

    Yields:
        A function that ends the work of this process, to be called at most once: whether nobody else does it now, and
        nobody can begin to before the block ends. It never is so where there are no locks.

    Raises:
        InputError: others do other work there now.
    """
    path = Path(folder) / lock
    descriptor = _join(path, work.encode(), refusal)
    last = False

    def leave() -> bool:
        nonlocal last
        if descriptor is not None and _lock_now(descriptor, fcntl.LOCK_EX):
            last = _is_at(descriptor, path) and _text(descriptor) == work.encode()
        return last

    try:
        yield leave
    finally:
        if descriptor is not None:
            if last or leave():
                _remove(path)
            os.close(descriptor)


def _join(path: Path, work: bytes, refusal: str) -> int | None:
    """The open file, locked for all who do the same; None where there are no locks."""
    others = 0  # looks that found other work: its owner may have died between the two steps of one look
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            first = _lock_now(descriptor, fcntl.LOCK_EX)
            if first and _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, work, 0)
            # From alone to shared is not one step: the text tells who came in between.
            if _lock_now(descriptor, fcntl.LOCK_SH) and _is_at(descriptor, path):
                if _text(descriptor) == work:
                    return descriptor
                others += 1
                if others == _LOOKS:
                    raise InputError(refusal)
        except OSError:
            _remove(path)
            os.close(descriptor)
            return None
        except InputError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_MOMENT_S)


def _lock_now(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _text(descriptor: int) -> bytes:
    return os.pread(descriptor, 4096, 0)


@contextmanager
def _held(path: Path, kind: int, stays: bool = False) -> Iterator[int | None]:
    descriptor = _acquire(path, kind)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            # Not where the folder was removed, and made again by another process.
            if kind == fcntl.LOCK_EX and not stays and _is_at(descriptor, path):
                _remove(path)  # first: once it is let go, it may be another's
            os.close(descriptor)


def _acquire(path: Path, kind: int) -> int | None:
    """The open and locked file, None where there are no locks."""
    while True:
        try:
            descriptor = _open(path, kind)
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


def _open(path: Path, kind: int) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if kind != fcntl.LOCK_SH or error.errno not in _NOT_WRITABLE:
            raise
        return os.open(path, os.O_RDONLY)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):  # an empty file that stays is in nobody's way
        path.unlink()
