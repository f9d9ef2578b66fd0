"""CSV files that a human writes: a header that says which columns there are, fields without blanks around them."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.io.files import reason

_DELIMITERS = ",;\t"  # spreadsheets write semicolons where the comma is the decimal mark, and tabs for "text"


def read_table(path: Path, headers: Sequence[tuple[str, ...]], *, missing: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column -> field) of every row below the header; empty rows are skipped.

    Args:
        path: a CSV file in UTF-8; its fields are parted by commas, semicolons or tabs, whichever the header has.
        headers: the headers that it may have, the usual one first; their columns may stand in any order but for a
            single header, whose order is the file's.
        missing: what to do where there is no such file, for the end of the sentence.

    Raises:
        InputError: the file is missing or no such CSV.
    """
    text = _text(path, missing)
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)  # of several, and of none, the first
    wanted = " or ".join(f"'{delimiter.join(columns)}'" for columns in headers)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        columns = tuple(field.strip() for field in header)
        same = tuple if len(headers) == 1 else sorted
        if same(columns) not in [same(one) for one in headers]:
            raise InputError(f"{path}, line 1: the header is '{delimiter.join(header)[:80]}'; write {wanted}")
        for row in reader:
            fields = [field.strip() for field in row]
            if not any(fields):  # an empty line, or the empty cells below a table
                continue
            if len(fields) != len(columns):
                raise InputError(
                    f"{path}, line {reader.line_num}: a row of {len(fields)} fields; write {delimiter.join(columns)}"
                )
            yield reader.line_num, dict(zip(columns, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV ({error}); correct the line") from None


def _text(path: Path, missing: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {missing}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8; save it as CSV (UTF-8)") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
