"""annotations.csv: who drew what. One row for every (case, organ) pair, with the columns case, organ and state."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from smile_fast.data.table_file import read_table
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path
from smile_runtime.names import normal_name

Declarations = dict[str, dict[str, State]]
"""case -> organ -> state, complete: every case has every organ."""

COLUMNS = ("case", "organ", "state")
FILE_NAME = "annotations.csv"
UNDECIDED = "?"
"""The state of a pair that `declare` could not know and that a human has yet to fill in."""


def read_annotations(path: Path, cases: Sequence[str], organs: Sequence[str], *, others: bool = False) -> Declarations:
    """Read and check the declarations of a dataset.

    Args:
        path: a CSV file in UTF-8 with the header ``case,organ,state``; its fields are parted by commas, semicolons or
            tabs, whichever the header has.
        cases: the dataset's cases.
        organs: the dataset's organs.
        others: whether the file may have rows of other cases, which are skipped: a store without the broken cases.

    Returns:
        The state of every (case, organ) pair, in the order of `cases` and `organs`.

    Raises:
        InputError: the file is missing or no such CSV; a row names an unknown case, organ or state, is undecided
            (``?``) or contradicts another row; a pair has no row.
    """
    found = read_declared(path, cases, organs, others=others)
    missing = [(case, organ) for case in cases for organ in organs if (case, organ) not in found]
    if missing:
        pairs = _some([f"{case}/{organ}" for case, organ in missing])
        raise InputError(
            f"{path}: no row for {len(missing)} of the {len(cases) * len(organs)} (case, organ) pairs: {pairs}; "
            "add them, or let 'smile-fast declare --update' draft them, which keeps the other rows"
        )
    return {case: {organ: found[case, organ] for organ in organs} for case in cases}


def read_declared(
    path: Path, cases: Sequence[str], organs: Sequence[str], *, others: bool = False
) -> dict[tuple[str, str], State]:
    """Read the states of those (case, organ) pairs that have a row; see `read_annotations`, also for errors."""
    path = Path(path)
    known_cases = {normal_name(case): case for case in cases}
    known_organs = {normal_name(organ): organ for organ in organs}
    found: dict[tuple[str, str], tuple[State, int]] = {}
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        case, organ, text = map(normal_name, row)
        if case not in known_cases:
            if others:
                continue
            raise InputError(f"{where}: the dataset has no case '{case}'; correct the name or remove the row")
        if organ not in known_organs:
            raise InputError(
                f"{where}: dataset.json has no organ '{organ}', its organs are {_some(list(organs))}; "
                "correct the name or remove the row"
            )
        case, organ = known_cases[case], known_organs[organ]
        state = _state(text, where, case, organ)
        if (case, organ) in found:
            other, first = found[case, organ]
            fault = "repeats" if other is state else f"says {state}, which contradicts {other} on"
            raise InputError(f"{where}: case {case}, organ {organ} {fault} line {first}; keep one of the rows")
        found[case, organ] = (state, line)
    return {pair: state for pair, (state, _) in found.items()}


def write_annotations(
    path: Path, declarations: Mapping[str, Mapping[str, State | None]], cases: Sequence[str], organs: Sequence[str]
) -> None:
    """Write declarations, one row a pair, in the order of `cases` and `organs`; atomic.

    Args:
        path: the CSV file.
        declarations: the state of every pair; None is written as undecided (``?``).
        cases: the dataset's cases.
        organs: the dataset's organs.

    Raises:
        InputError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in cases:
        for organ in organs:
            state = declarations[case][organ]
            writer.writerow((case, organ, UNDECIDED if state is None else state.value))
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")


def _rows(path: Path) -> Iterable[tuple[int, list[str]]]:
    """Yield (line number, the three fields without blanks around them) of every row below the header."""
    draft = path.with_suffix(f".draft{path.suffix}")
    missing = "draft it with 'smile-fast declare', it declares who annotated what"
    if draft.exists():
        missing = f"answer every '?' in {draft}, then rename it to {path.name}"
    for line, row in read_table(path, [COLUMNS], missing=missing):
        yield line, list(row.values())


def _state(text: str, where: str, case: str, organ: str) -> State:
    if text == UNDECIDED:
        raise InputError(
            f"{where}: case {case}, organ {organ} is still undecided ('{UNDECIDED}'); "
            "replace it by missing (not drawn) or absent (it is not there)"
        )
    try:
        return State(text)
    except ValueError:
        states = ", ".join(state.value for state in State)
        raise InputError(
            f"{where}: case {case}, organ {organ} has the unknown state '{text}'; use one of {states}"
        ) from None


def _some(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list that may hold thousands."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
