"""A folder that appears as a whole or not at all, wherever the process that makes it is cut short.

It is made beside its place and renamed. A folder that nothing can be renamed to (a mount point, or one in a folder that
cannot be written) is filled in place: what it gets is made in a hidden folder within it, and moved file by file, one
file last, without which the others are nothing.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smile_fast.data.folder_lock import LOCK, locked
from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, reason

_LOCK = ".lock"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what renaming to a folder that holds something says
_FIXED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)  # and where it cannot be done
_HEX = "[0-9a-f]{16}"
_MOVED = ".moved"  # in a folder within: the names of what goes up


@contextmanager
def new_folder(final: Path, last: str) -> Iterator[Path]:
    """Give a hidden folder to fill, and let it become `final` when the block ends well.

    A lock goes with this process: what a killed one leaves, the next one of the same name removes.

    Args:
        final: a folder that is not there yet, or is unused (see `is_unused`); missing parents are made.
        last: name of the file without which the folder is nothing.

    Yields:
        The folder, empty; what the block writes into it is on the disk when the block ends (see `atomic_path`).

    Raises:
        InputError: it cannot be made, something else has its name by now, or another process writes there.
    """
    target = Path(os.path.realpath(final))
    with _making(final):
        target.parent.mkdir(parents=True, exist_ok=True)
        within = target.is_dir() and (_is_current(target) or not _can_be_renamed_to(target))
    with (_filled if within else _replaced)(target, final, last) as temporary:
        yield temporary


@contextmanager
def _replaced(target: Path, final: Path, last: str) -> Iterator[Path]:
    """A folder beside the target, which is renamed to it."""
    name = f"{_prefix(target)}{secrets.token_hex(8)}"
    temporary = target.with_name(name)
    with _making(final):
        sweep(target)
    with locked(target.parent, name + _LOCK):
        try:
            with _making(final):
                temporary.mkdir()
            yield temporary
            with _making(final):
                flush(temporary)
                with locked(final):
                    _sweep_within(target, last)  # nobody writes there, and a lock that was left is gone
                _appear(temporary, target, final)
                flush(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _filled(target: Path, final: Path, last: str) -> Iterator[Path]:
    """A folder within the target, whose files are moved up."""
    temporary = target / f".new-{secrets.token_hex(8)}"
    with locked(target):
        with _making(final):
            _sweep_within(target, last)
            _refuse_taken(target, final)
            temporary.mkdir()
        try:
            yield temporary
            with _making(final):
                names = sorted((entry.name for entry in temporary.iterdir()), key=lambda name: (name == last, name))
                _note_moved(temporary, names)
                for name in names:
                    if name == last:
                        flush(target)
                    os.rename(temporary / name, target / name)
                flush(target)
        finally:
            if (target / last).exists():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                _sweep_within(target, last)


def is_unused(folder: Path, last: str) -> bool:
    """Whether a folder holds nothing but what is left of processes that were killed while they filled it.

    Raises:
        OSError: it cannot be looked at.
    """
    if (folder / last).exists():
        return False
    left = _left_within(folder)
    known = {LOCK, *left, *(name for each in left for name in _moved(folder / each))}
    return all(entry.name in known for entry in folder.iterdir())


def remove_folder(path: Path, last: str) -> None:
    """Remove a folder: whoever is cut short in it leaves the whole one, or nothing that is one."""
    target = Path(os.path.realpath(path))
    hidden = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}")
    try:
        os.rename(target, hidden)
    except OSError:  # it was filled in place
        hidden = target / f".new-{secrets.token_hex(8)}"
        with suppress(OSError):
            names = [entry.name for entry in target.iterdir() if entry.name not in (LOCK, last)]
            hidden.mkdir()
            _note_moved(hidden, names)
            os.rename(target / last, hidden / last)
            for name in names:
                os.rename(target / name, hidden / name)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep(target: Path) -> None:
    """Remove what processes that are gone have left beside a folder that they made or removed.

    Raises:
        OSError: its parent cannot be looked at.
    """
    ours = re.compile(f"{re.escape(_prefix(target))}{_HEX}")
    names = {entry.name.removesuffix(_LOCK) for entry in target.parent.iterdir()}
    for name in sorted(filter(ours.fullmatch, names)):
        with suppress(InputError), locked(target.parent, name + _LOCK) as alone:  # else it is being made now
            if alone:
                shutil.rmtree(target.with_name(name), ignore_errors=True)


def _sweep_within(folder: Path, last: str) -> None:
    """Remove what processes that are gone have left in a folder; whoever calls holds its lock."""
    if not folder.is_dir() or (folder / last).exists():
        return
    for left in _left_within(folder):
        for name in _moved(folder / left):
            with suppress(OSError):
                (folder / name).unlink()
        shutil.rmtree(folder / left, ignore_errors=True)


def _left_within(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if re.fullmatch(rf"\.new-{_HEX}", entry.name)]


def _note_moved(folder: Path, names: list[str]) -> None:
    """Write down, before it begins, what goes up from a folder or down into it: a kill in between leaves a part."""
    (folder / _MOVED).write_text(json.dumps(names), encoding="utf-8")
    flush(folder / _MOVED)
    flush(folder)


def _moved(left: Path) -> list[str]:
    """The names of what has gone up from a folder, or was about to."""
    try:
        names = json.loads((left / _MOVED).read_bytes())
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def _is_current(target: Path) -> bool:
    """Whether it is the folder that this process is in, whose relative paths would lead nowhere once it is replaced."""
    return Path(os.path.realpath(os.curdir)) == target


def _can_be_renamed_to(target: Path) -> bool:
    """Whether a new folder can take the place of one that is there: tried with an empty one, if that is empty."""
    probe = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}")
    try:
        probe.mkdir()
        os.rename(probe, target)
    except OSError as error:
        with suppress(OSError):
            probe.rmdir()
        if error.errno not in (*_FIXED, *_TAKEN):
            raise
        return error.errno in _TAKEN
    return True


def _refuse_taken(target: Path, final: Path) -> None:
    if any(entry.name != LOCK for entry in target.iterdir()):
        raise InputError(f"{final}: another process has made it meanwhile; give a new folder")


def _appear(temporary: Path, target: Path, final: Path) -> None:
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno in _TAKEN:
            raise InputError(f"{final}: another process has made it meanwhile; give a new folder") from None
        raise


def _prefix(target: Path) -> str:
    return f".{target.name}.new-"


@contextmanager
def _making(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{final}: the run folder cannot be made ({reason(error)}); give another one") from None
