"""Files that appear complete or not at all."""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from smile_runtime.errors import InputError


@contextmanager
def atomic_path(final: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name to write to, and rename it to ``final`` when the block ends well.

    The temporary file lies in the folder of ``final`` and keeps its suffixes, so that writers which look
    at the name (``.nii.gz``, ``.b2nd``) behave as they would with the final name. It is flushed to the disk
    before the rename; if the block raises anything, it is removed and ``final`` stays as it was.

    Args:
        final: The file to write. Its folder must exist; an existing regular file is replaced.

    Yields:
        The temporary path: not there yet, to be written by the caller as one file.

    Raises:
        InputError: ``final`` cannot be written: no folder, no permission, a folder or a device of that name,
            a full disk. An ``OSError`` that names some other file passes unchanged.
    """
    path = Path(final)
    _refuse_unwritable(path)
    target = Path(os.path.realpath(path))  # a symbolic link keeps pointing where it points
    temporary = _temporary_name(target)
    try:
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, target)
            flush(target.parent)
        except OSError as error:
            if error.filename not in (None, str(temporary), str(target), str(target.parent)):
                raise
            raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk.

    Raises:
        OSError: They are not. A file system that cannot flush folders (some of network shares and FUSE) is none: it
            says EINVAL or ENOTSUP, and renaming is all that can be done there.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def check_writable(final: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before minutes are spent on what should go there.

    Args:
        final: The file that will be written later through `atomic_path`.

    Raises:
        InputError: As `atomic_path` would, but for a disk that fills up in the meantime.
    """
    path = Path(final)
    _refuse_unwritable(path)
    temporary = _temporary_name(Path(os.path.realpath(path)))
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from error


def refuse_overwrite(
    final: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    *,
    role: str = "input",
) -> None:
    """Refuse an output that is one of the inputs, under whatever name or link.

    Args:
        final: The file that will be written.
        inputs: Files that are read.
        role: What to call one of ``inputs`` in the message.

    Raises:
        InputError: ``final`` is one of ``inputs``.
    """
    for source in inputs:
        same_name = os.path.realpath(final) == os.path.realpath(source)
        same_file = os.path.exists(final) and os.path.exists(source) and os.path.samefile(final, source)
        if same_name or same_file:
            raise InputError(f"{final}: would overwrite the {role} {source}; choose another name")


def check_results(
    results: Iterable[str | os.PathLike[str] | None],
    inputs: Iterable[str | os.PathLike[str]],
    outputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuse results that cannot be written, or would overwrite an input or each other.

    Args:
        results: Files that will be written; None stands for one that is not wanted.
        inputs: Files that are read.
        outputs: Files that are written besides.

    Raises:
        InputError: There is one.
    """
    sources, taken = list(inputs), list(outputs)
    for path in results:
        if path is not None:
            refuse_overwrite(path, sources)
            refuse_overwrite(path, taken, role="other output")
            check_writable(path)
            taken.append(path)


def check_json(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a JSON file of another name: it is more likely a slip of the hand than a wish.

    Args:
        path: The file that will be written.
        what: What goes there, for the message.

    Raises:
        InputError: The name does not end in .json.
    """
    if Path(path).suffix.lower() != ".json":
        raise InputError(f"{path}: not a name for {what}; give one that ends in .json")


def check_readable(path: str | os.PathLike[str]) -> int:
    """Refuse a path that is not a regular file; opening a pipe, say, could wait forever.

    Args:
        path: A file that will be read.

    Returns:
        Its size, bytes.

    Raises:
        InputError: It is missing, a folder or a device, or may not be looked at.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: cannot be read ({reason(error)}); check its name and permissions") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: cannot be read, it is a folder; give a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: cannot be read, it is a device or a pipe; give a regular file")
    return status.st_size


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal; read block by block, whatever its size.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); check its name and permissions") from error


def reason(error: Exception) -> str:
    """What the operating system says about an error, for the end of a sentence."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text[:1].lower() + text[1:]


def printable(name: str | os.PathLike[str]) -> str:
    r"""A file's name, or a text with some, for a terminal or a UTF-8 file: bytes that are no UTF-8 become ``\xe9``."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write ``obj`` as UTF-8 JSON, indented by 2, keys in insertion order, atomically.

    Args:
        path: The file to write.
        obj: What `json.dumps` takes.

    Raises:
        InputError: ``path`` cannot be written.
        ValueError: A number in ``obj`` is NaN or infinite, which JSON does not know: write ``None``.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str], remedy: str, *, missing: str | None = None) -> dict[str, Any]:
    """Read the object in a JSON file: UTF-8 whatever the locale, a byte order mark allowed.

    Args:
        path: The file to read.
        remedy: What to do when it cannot be used, for the end of the sentence.
        missing: What to do when there is no such file, if that is something else.

    Raises:
        InputError: The file is missing, unreadable, not UTF-8, or does not hold a JSON object (see `parse_json`).
    """
    try:
        return parse_json(Path(path).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {missing or remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); {remedy}") from error
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); {remedy}") from None


def parse_json(text: str) -> dict[str, Any]:
    """Read a JSON object from a text.

    Raises:
        ValueError: It is not JSON, is nested too deeply, holds NaN or an infinite number, or is no object.
    """
    try:
        found = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _refuse_unwritable(path: Path) -> None:
    try:
        if path.is_dir():
            raise InputError(f"{path}: cannot be written, it is a folder; give the name of a file")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: cannot be written, it is a device or a pipe; give the name of a regular file")
        if not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written, the folder {path.parent} does not exist; make it first")
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from error


def _temporary_name(target: Path) -> Path:
    suffixes = "".join(target.suffixes[-2:]) if target.suffix.lower() == ".gz" else target.suffix
    return target.with_name(f".tmp-{secrets.token_hex(8)}{suffixes}")
