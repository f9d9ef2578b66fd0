"""SIGKILL at any change that a command makes to files: nothing is half-visible, and repeated it gives the same bits."""

import os
import random
from typing import Any

import pytest

from tests.faults.inject import KILL, TORN, WRITE
from tests.faults.scenarios import SCENARIOS, Bench, Scenario

_SLOW = int(os.environ.get("SMILE_FAST_KILLS", "520"))  # all scenarios together
_QUICK = 64


def places(scenario: Scenario, seen: list[str], count: int) -> list[tuple[str, int]]:
    """(kind, number) of `count` kills, drawn by the scenario's name; most changes of a training are writes of tensors.

    Half of the kills are at writes, evenly spread, and torn or not; half at whatever else there is.
    """
    draw, found = random.Random(scenario.name), []
    writes = [number for number, name in enumerate(seen, start=1) if name == WRITE]
    others = [number for number, name in enumerate(seen, start=1) if name != WRITE]
    for n in range(count):
        numbers = writes if n % 2 and writes else others
        place = numbers[int((n + draw.random()) * len(numbers) / count)]
        found.append((TORN if n % 4 == 1 else KILL, place))
    return found


def check_kills(bench: Bench, scenario: Scenario, count: int) -> None:
    def judge(label: str, died: dict[str, Any]) -> None:
        assert died["status"] == -9, f"{label}: {died}"

    assert bench.check_survives(scenario, lambda seen: places(scenario, seen, count), judge) == count


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_command_survives_kills(bench, scenario):
    check_kills(bench, scenario, _QUICK // len(SCENARIOS))


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_command_survives_many_kills(bench, scenario):
    check_kills(bench, scenario, _SLOW // len(SCENARIOS))
