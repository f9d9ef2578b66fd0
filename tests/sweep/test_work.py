"""How cells are taken: until the time is over, and by plans that look at the cohort once."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from smile_fast import __version__
from smile_fast.data.case_info import CaseInfo
from smile_fast.data.store import Store
from smile_fast.sweep.cell import finished
from smile_fast.sweep.grid import ROUNDS_ONLY, Cell, Sweep, cells_of
from smile_fast.sweep.work import Budget, missing, work
from smile_fast.training.execution import DEFAULT_EXECUTION
from tests.runs import make_store, truth
from tests.trainings import CPU, TINY


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path: Path = tmp_path_factory.mktemp("work") / "store"
    return make_store(path, {f"case_{n}": truth() for n in range(5)})


def test_no_cell_begins_after_the_end_of_the_budget(store: Store, tmp_path: Path) -> None:
    sweep = Sweep(store, tmp_path, {**TINY, "epochs": 0.1})
    cells = cells_of(["smile"], [0.0, 0.5], 1)
    readings: Iterator[float] = iter([9.0, 10.0])  # before each cell; the second one is too late
    work(sweep, cells, CPU, DEFAULT_EXECUTION, Budget(10.0, lambda: next(readings)))
    assert missing(sweep, cells) == cells[1:]
    assert not sweep.path(cells[1]).exists()
    work(sweep, cells, CPU, DEFAULT_EXECUTION, Budget.of(0))  # no end
    assert missing(sweep, cells) == []


class Watched(dict[str, CaseInfo]):
    """Cases that count how often all of them are gone through."""

    looks = 0

    def items(self):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().items()


def test_a_plan_is_a_digest_of_one_object_and_the_cohort_is_digested_once(store: Store, tmp_path: Path) -> None:
    cases = Watched(store.cases)
    sweep = Sweep(replace(store, cases=cases), tmp_path, TINY, seed=3)
    cells = cells_of(["baseline", "smile"], [0.0, 0.5], 2)
    plans = {cell: sweep.plan(cell) for cell in cells}
    looks = cases.looks
    assert [finished(sweep, cell) for cell in cells] == [None] * 8
    assert {cell: sweep.plan(cell) for cell in cells} == plans
    assert cases.looks == looks
    assert len(set(plans.values())) == 8
    cell = Cell("baseline", 0.5, 1)
    settings = sweep.config(cell).to_json()
    for name in ROUNDS_ONLY:
        settings.pop(name)
    whole = {
        "cell": asdict(cell),
        "cases": {name: asdict(case) for name, case in store.cases.items()},
        "split": sweep.split(cell).folds[0],
        "method": "baseline",
        "settings": settings,
        "seed": 3,
        "surfaces": False,
        "declared": False,
        "version": __version__,
    }
    assert plans[cell] == hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()
