"""The README's block of GPUs: for each the goals and how they stand, and the peers; from the records alone."""

from collections.abc import Iterator
from pathlib import Path

from bench.benchmark_table import table
from bench.gpu_goals import UNMEASURED, Verdict, number, verdicts
from bench.records import RESULTS, Record, gpus


def tables(folder: Path = RESULTS) -> str:
    """All GPUs that were measured, one after the other."""
    found = gpus(folder)
    if not found:
        return "No GPU was measured yet.\n"
    return "\n".join(part for record in found.values() for part in (goals_table(record), table(record)))


def goals_table(record: Record) -> str:
    """The goals that a record says something of, as Markdown, and the names of the others."""
    found = verdicts(record)
    return "\n".join([*_rows(record, found), "", *_unmeasured(found)])


def _rows(record: Record, found: list[Verdict]) -> Iterator[str]:
    yield f"| {record.machine['gpu']} | measured | goal | | whose figure, at which commit |"
    yield "|---|---|---|---|---|"
    for verdict in found:
        if verdict.state == UNMEASURED or verdict.figure is None:
            continue
        goal = verdict.goal
        state = f"{verdict.state}, {verdict.gap}" if verdict.gap else verdict.state
        measured, wanted = (f"{number(value)} {goal.unit}".strip() for value in (verdict.figure, goal.goal))
        yield f"| {goal.wording} | {measured} | {goal.direction} {wanted} | {state} | {verdict.whose} |"


def _unmeasured(found: list[Verdict]) -> Iterator[str]:
    goals = [verdict.goal for verdict in found if verdict.state == UNMEASURED]
    if goals:
        wanted = (" ".join([goal.direction, number(goal.goal), goal.unit]).strip() for goal in goals)
        names = (f"{goal.wording} ({figure})" for goal, figure in zip(goals, wanted, strict=True))
        yield f"Goals that nobody has measured yet: {'; '.join(names)}."
        yield ""
