"""Tables that bring the label values and names of a cohort to the organs of ours: what `--map FILE` reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smile_fast.data.table_file import read_table
from smile_fast.text_table import listed
from smile_runtime.errors import InputError
from smile_runtime.label_map import LABEL_VALUES
from smile_runtime.names import normal_name

BACKGROUND = ""
"""The organ of a label that is dropped."""
VOID_NAME = "void"
"""The organ of a label whose voxels no class is supervised on."""
_VOID_NAMES = (VOID_NAME, "ignore")
_HEADERS = (("name", "organ"), ("value", "organ"), ("source", "name", "organ"), ("source", "value", "organ"))


@dataclass(frozen=True)
class LabelTable:
    """Which organ a label is.

    Attributes:
        path: the file.
        names: name of the label -> organ; a label that it does not name keeps its name.
        values: value in the label maps -> organ, of every value that occurs; None where the table is by name.
    """

    path: Path
    names: dict[str, str]
    values: dict[int, str] | None = None

    @classmethod
    def read(cls, path: Path, source: str) -> "LabelTable":
        """Read the rows of one dataset.

        Args:
            path: a CSV file with the columns name or value, organ, and, if one file serves several datasets, source.
                An empty organ (or background) drops the label, void (or ignore) makes it void; several labels may be
                one organ.
            source: the dataset's name, for the column of that name.

        Raises:
            InputError: the file is no such table, has no row of the dataset, or two for one label.
        """
        names: dict[str, str] = {}
        values: dict[int, str] = {}
        seen: dict[str, int] = {}
        sources: set[str] = set()
        by_value = False
        for line, row in read_table(path, _HEADERS, missing="give a CSV file with the columns name,organ"):
            where = f"{path}, line {line}"
            by_value = "value" in row
            if "source" in row:
                sources.add(normal_name(row["source"]))
                if normal_name(row["source"]) != source:
                    continue
            label = normal_name(row["value" if by_value else "name"])
            value = label_value(label) if by_value else None
            if by_value and value is None:
                raise InputError(
                    f"{where}: '{label[:20]}' is no label value; give a whole number in 0..{LABEL_VALUES - 1}"
                )
            label = label if value is None else str(value)
            if label in seen:
                raise InputError(f"{where}: label '{label}' stands on line {seen[label]} already; keep one of the rows")
            seen[label] = line
            organ = organ_name(row["organ"], where)
            if value is None:
                names[label] = organ
                continue
            if value == 0 and organ not in (BACKGROUND, VOID_NAME):
                raise InputError(f"{where}: the value 0 is background and no organ; remove the row, or write void")
            values[value] = organ
        if not seen:
            others = f", its sources are {listed(sorted(sources))}" if sources else ""
            raise InputError(f"{path}: has no row for {source}{others}; add its labels")
        return cls(path, names, values if by_value else None)

    def check_names(self, known: Sequence[str]) -> None:
        """Refuse a table that names a label which the dataset does not have: most likely a slip of the pen.

        Raises:
            InputError: it does.
        """
        strange = [name for name in self.names if name not in known]
        if strange:
            raise InputError(
                f"{self.path}: the dataset has no label {listed(strange)}, its labels are {listed(list(known))}; "
                "correct the name or remove the row"
            )


def organ_name(text: str, where: str) -> str:
    """The organ of a row: `BACKGROUND` for nothing, `VOID_NAME` for void.

    Raises:
        InputError: it cannot be the name of an organ.
    """
    name = normal_name(text)
    if name == "background":
        return BACKGROUND
    if name in _VOID_NAMES:
        return VOID_NAME
    if not name.isprintable():
        raise InputError(f"{where}: {name!a} is no usable organ name; use printable text")
    return name


def label_value(text: str) -> int | None:
    """The value in a label map that a text means, 7 of "7" and of "007"; None if it means none."""
    if not text.isascii() or not text.isdecimal():
        return None
    value = int(text.lstrip("0")[:9] or "0")  # Python makes no number of thousands of digits
    return value if value < LABEL_VALUES else None
