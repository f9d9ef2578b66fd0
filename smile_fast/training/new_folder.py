"""A folder that appears as a whole or not at all, wherever the process that makes it is cut short."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smile_fast.data.folder_lock import locked
from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, reason

_LOCK = ".lock"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what renaming to a folder that holds something says


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Give a hidden folder beside `final` to fill, and rename it when the block ends well.

    Its lock lies beside it and goes with this process: what a killed one leaves, the next one of the same name removes.

    Args:
        final: a folder that is not there yet, or holds nothing but a lock that was left; missing parents are made.

    Yields:
        The folder, empty; what the block writes into it is on the disk when the block ends (see `atomic_path`).

    Raises:
        InputError: it cannot be made, something else has its name by now, or another process writes there.
    """
    target = Path(os.path.realpath(final))
    name = f"{_prefix(target)}{secrets.token_hex(8)}"
    temporary = target.with_name(name)
    with _making(final):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
    with locked(target.parent, name + _LOCK):
        try:
            with _making(final):
                temporary.mkdir()
            yield temporary
            with _making(final):
                flush(temporary)
                with locked(final):
                    pass  # nobody writes there, and a lock that was left is gone
                os.rename(temporary, target)
                flush(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder: whoever is cut short in it leaves the whole one, or none of that name."""
    target = Path(os.path.realpath(path))
    hidden = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}")
    with suppress(OSError):
        os.rename(target, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep(target: Path) -> None:
    """Remove what processes that are gone have left of a folder that they made or removed.

    Raises:
        OSError: its parent cannot be looked at.
    """
    names = {entry.name.removesuffix(_LOCK) for entry in target.parent.iterdir()}
    for name in sorted(name for name in names if name.startswith(_prefix(target))):
        with suppress(InputError), locked(target.parent, name + _LOCK) as alone:  # else it is being made now
            if alone:
                shutil.rmtree(target.with_name(name), ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.new-"


@contextmanager
def _making(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _TAKEN:
            raise InputError(f"{final}: another process has made it meanwhile; give a new folder") from None
        raise InputError(f"{final}: the run folder cannot be made ({reason(error)}); give another one") from None
