"""JSON that this package writes for itself: sealed by a digest of its bytes, and read as a declared type.

A file that a user may edit (dataset.json, annotations.csv) is none of these.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar

import msgspec

from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, printable, reason

_T = TypeVar("_T")
_SEAL = re.compile(rb',\s*"sha256": "([0-9a-f]{64})"\}\n')
_NO_UTF_8 = re.compile("[\udc80-\udcff]")
_SEAL_SPACE = 90  # bytes; no seal is longer


class DamagedRecord(InputError):
    """A file that is not what was written."""


class _Changed(ValueError):
    """The seal is not that of the bytes before it: nothing that they say is to be believed."""


def write_record(path: str | PathLike[str], obj: object) -> None:
    """Write an object as sealed UTF-8 JSON, indented by 2, atomically.

    Args:
        path: the file.
        obj: a dictionary that `json.dumps` takes; it has at least one key, and none is "sha256".

    Raises:
        InputError: the file cannot be written.
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    write_sealed(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False))


def write_sealed(path: str | PathLike[str], text: str) -> None:
    """Write the text of a JSON object, which the caller has laid out, with a seal as its last key.

    Args:
        path: the file.
        text: ends in the object's closing brace; the object is not empty.

    Raises:
        InputError: the file cannot be written.
    """
    body = _NO_UTF_8.sub(_escaped, text).removesuffix("}").rstrip().encode("utf-8")
    with atomic_path(path) as temporary:
        temporary.write_bytes(body + b',\n"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n')


def _escaped(found: re.Match[str]) -> str:
    r"""JSON of what `printable` makes of a byte of a file's name that is no UTF-8: ``\xe9`` with its backslash."""
    return json.dumps(printable(found[0]))[1:-1]


@dataclass
class _Versioned:
    schema: int | None = None


def read_record(
    path: str | PathLike[str],
    kind: type[_T],
    schema: int,
    remedy: str,
    *,
    missing: str = "",
    older: str = "",
    newer: str = "",
) -> _T:
    """Read what `write_record` wrote: its digest, its schema version, and the type of every value are checked.

    Args:
        path: the file.
        kind: what it holds: a dataclass, or another type that msgspec decodes; keys that it does not name are ignored.
            What its `__post_init__` raises as ValueError is damage, too.
        schema: the version that this program reads, which stands in the file as "schema".
        remedy: what to do about a file that cannot be used, for the end of the sentence.
        missing: what to do where there is none, if that is something else.
        older: what to do about a file of an older version, if that is something else.
        newer: what to do about a file of a newer version, if that is something else.

    Raises:
        DamagedRecord: it is not what was written.
        InputError: there is no such file, it cannot be read, or is of another version.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {missing or remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); {remedy}") from error
    try:
        _check_seal(raw)
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors, undecodable text is one
        found = None if isinstance(error, _Changed) else schema_of(raw)
        if found is not None and found != schema:
            advice = (older if found < schema else newer) or remedy
            raise InputError(f"{path}: is of schema {found}, this version reads {schema}; {advice}") from None
        raise DamagedRecord(f"{path}: damaged ({_words(error)}); {remedy}") from None


def _check_seal(raw: bytes) -> None:
    start = max(0, len(raw) - _SEAL_SPACE)
    seal = _SEAL.search(raw, start)
    if seal is None or seal.end() != len(raw):
        raise ValueError("its end is missing or changed")
    if hashlib.sha256(memoryview(raw)[: seal.start()]).hexdigest().encode() != seal[1]:
        raise _Changed("it has not the checksum that it was written with")


def schema_of(raw: bytes) -> int | None:
    """The version that the bytes of a file say it is of, whatever else is wrong with it; None if they say none."""
    try:
        return msgspec.json.decode(raw, type=_Versioned).schema
    except (ValueError, RecursionError):
        return None


def _words(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
