"""A change to files that fails: one sentence, what was there before is whole, and repeated the command goes through.

A disk that is full, one that is broken, and one that takes half of a write and is full then.
"""

import os
import random
from typing import Any

import pytest

from tests.faults.inject import ERRORS
from tests.faults.scenarios import SCENARIOS, Bench, Scenario

_SLOW = int(os.environ.get("SMILE_FAST_ERRORS", "600"))  # all scenarios together; 0: at every change
_QUICK = 32


def places(scenario: Scenario, seen: list[str], count: int) -> list[tuple[str, int]]:
    """(kind, number) of errors: all changes but writes of tensors, and as many of those, or `count` of them."""
    every = [(kind, number) for kind in ERRORS for number in range(1, len(seen) + 1)]
    return random.Random(scenario.name).sample(every, min(count, len(every))) if count else every


def check_failing_changes(bench: Bench, scenario: Scenario, count: int) -> None:
    def judge(label: str, failed: dict[str, Any]) -> None:
        errors = [line for line in failed["said"].splitlines() if line.startswith("error: ")]
        assert "Traceback" not in failed["said"], f"{label}: {failed['said']}"
        assert (failed["status"], len(errors)) in ((0, 0), (2, 1)), f"{label}: {failed}"

    assert bench.check_survives(scenario, lambda seen: places(scenario, seen, count), judge)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_change_that_fails(bench, scenario):
    check_failing_changes(bench, scenario, _QUICK // len(SCENARIOS))


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_change_that_fails(bench, scenario):
    check_failing_changes(bench, scenario, _SLOW // len(SCENARIOS))
