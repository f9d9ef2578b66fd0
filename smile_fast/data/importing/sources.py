"""sources.csv of a merged, imported or painted dataset: where each of its cases comes from."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from smile_fast.data.table_file import read_table
from smile_runtime.io.files import atomic_path
from smile_runtime.names import normal_name

FILE_NAME = "sources.csv"


@dataclass(frozen=True)
class CaseSource:
    """Where a case comes from.

    Attributes:
        case: its name here.
        dataset: name of the dataset. original: the case's name there.
        image_sha256: SHA-256 of the image's file there.
        labels_sha256: that of the label map; of one mask an organ, of all of them together.
    """

    case: str
    dataset: str
    original: str
    image_sha256: str
    labels_sha256: str


COLUMNS = tuple(field.name for field in fields(CaseSource))


def write_sources(path: Path, sources: Iterable[CaseSource]) -> None:
    """Write the table, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(astuple, sources))
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")


def read_sources_table(path: Path) -> dict[str, CaseSource]:
    """Read the table: case -> where it comes from.

    Raises:
        InputError: there is none, or it is damaged.
    """
    rows = read_table(path, [COLUMNS], missing="a merged or imported dataset has one, and a phantom with --sources")
    return {row["case"]: CaseSource(**row) for _, row in rows}


def case_sources(dataset: Path) -> dict[str, str]:
    """`normal_name` of a case -> the dataset that it comes from; nothing where there is no table.

    Raises:
        InputError: the table is damaged.
    """
    path = dataset / FILE_NAME
    if not path.exists():
        return {}
    return {normal_name(case): origin.dataset for case, origin in read_sources_table(path).items()}
