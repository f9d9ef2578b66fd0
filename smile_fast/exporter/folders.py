"""Folders that appear complete or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.io.files import flush, reason


def check_new_folder(path: Path) -> None:
    """Refuse a folder that exists and holds something, or that cannot be made.

    Raises:
        InputError: as said.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: already exists and is not an empty folder; choose another name")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"{path}: no folder can be made in {parent}; choose another place")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from error


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Give a temporary folder beside `final` to write to, and rename it when the block ends well.

    Args:
        final: a folder that does not exist yet or is empty; missing parents are made.

    Raises:
        InputError: it cannot be written.
    """
    temporary = final.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            flush(path)
        os.replace(temporary, final)
    except OSError as error:
        raise InputError(f"{final}: cannot be written ({reason(error)}); choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
