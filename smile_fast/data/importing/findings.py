"""What has to be known of a dataset that was made of others."""

from collections.abc import Mapping

from smile_fast.data.importing.case_files import MadeCase
from smile_fast.data.importing.plan import Plan
from smile_fast.data.same_scans import same_scans
from smile_fast.supervision.states import State
from smile_fast.text_table import listed


def empty_pairs(plan: Plan, made: Mapping[str, MadeCase]) -> dict[str, list[str]]:
    """Organ -> cases in which it is annotated and has no voxel."""
    found: dict[str, list[str]] = {}
    for case, states in (plan.states or {}).items():
        for organ, count in zip(plan.organs, made[case].counts, strict=True):
            if states[organ] is State.ANNOTATED and not count:
                found.setdefault(organ, []).append(case)
    return found


def header_warnings(made: Mapping[str, MadeCase]) -> list[str]:
    """A sentence for each doubt about headers, with the cases of which it is."""
    found: dict[str, list[str]] = {}
    for case, record in made.items():
        for doubt in record.warnings:
            found.setdefault(doubt, []).append(case)
    return [f"{listed(sorted(cases))}: {doubt}" for doubt, cases in found.items()]


def repeat_warnings(plan: Plan, made: Mapping[str, MadeCase]) -> list[str]:
    """A sentence for the scans that are both in training and test, and one for those under several names of a split."""
    cases = {case.name: case for case in plan.cases}
    leaks: list[str] = []
    repeats: list[str] = []
    for group in same_scans({name: record.voxels for name, record in made.items()}):
        names = " and ".join(f"{name} ({cases[name].source}/{cases[name].original})" for name in sorted(group))
        splits = {cases[name].split for name in group}
        (leaks if len(splits) > 1 else repeats).append(names)
    found = []
    if leaks:
        found.append(
            f"the same scan is in training and among the held-out cases: {listed(leaks)}; scores will be too good, "
            "leave one of them out with --without CASE, into a new OUT"
        )
    if repeats:
        found.append(
            f"the same scan stands under several names: {listed(repeats)}; it counts as often, and what was drawn in "
            "one is not joined with what was drawn in the other: leave all but one out with --without CASE, into a new "
            "OUT, or draw all of it into one label map before"
        )
    return found
