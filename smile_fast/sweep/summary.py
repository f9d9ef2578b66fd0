"""The record of what all finished cells of a sweep say together: what its page is made of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from smile_fast.records import read_record, write_record
from smile_fast.sweep.statistics import Row, Test

SUMMARY = "summary.json"
_SCHEMA: Literal[2] = 2
_REMEDY = "sweep again, which computes no finished cell twice"


@dataclass(frozen=True)
class Summary:
    """The rows and the tests of a sweep.

    Attributes:
        rows: by method, alpha and organ; methods and organs in their order.
        tests: by alpha, methods and organ.
    """

    schema: Literal[2]
    rows: tuple[Row, ...]
    tests: tuple[Test, ...]


def write_summary(out: Path, rows: Sequence[Row], tests: Sequence[Test]) -> Path:
    """Write the record into the folder of a sweep.

    Raises:
        InputError: it cannot be written.
    """
    write_record(out / SUMMARY, asdict(Summary(_SCHEMA, tuple(rows), tuple(tests))))
    return out / SUMMARY


def read_summary(out: Path) -> Summary:
    """Read the record of a sweep.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    return read_record(out / SUMMARY, Summary, _SCHEMA, _REMEDY)
