"""Opening a store of thousands of cases: one file is read, and numbers that nobody asks for stay as they are."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from export.tests.cpu_time import seconds_of, shortest
from smile_fast.data.case_info import IMAGE, LABELS, CaseInfo, StoredBox, gather_counts
from smile_fast.data.store import Store, write_index
from smile_fast.supervision.states import State
from smile_runtime.volume.preprocessing import BodyBox, BodyRule

ORGANS = tuple(f"organ_{number:02}" for number in range(13))
SLICES = 100
LIMITS = {1_000: 0.2, 10_000: 1.5}  # CPU seconds
BYTES_OF_A_CASE = 16_000  # 13 organs in some 40 of 100 slices take half of it


def case(number: int) -> CaseInfo:
    rng = np.random.default_rng(number % 50)
    counts = np.zeros((SLICES, len(ORGANS)), np.int64)
    for k in range(len(ORGANS)):
        first = int(rng.integers(0, 40))
        counts[first : first + 40, k] = rng.integers(100, 9000, 40)
    return CaseInfo(
        name=f"case_{number:05}",
        split="train",
        shape=(SLICES, 512, 512),
        spacing=(2.5, 0.78, 0.78),
        affine=((0.78, 0, 0, -200.1), (0, 0.78, 0, -180.5), (0, 0, 2.5, 30.25), (0, 0, 0, 1)),
        states=dict.fromkeys(ORGANS, State.ANNOTATED),
        runs=gather_counts(counts, ORGANS),
        sources={"image": f"{number:064x}", "label": f"{number + 1:064x}"},
        arrays={IMAGE: f"{number + 2:064x}", LABELS: f"{number + 3:064x}"},
        body=StoredBox.of(BodyBox(SLICES, tuple(range(SLICES)), slice(16, 496), slice(8, 504)), BodyRule()),
    )


@pytest.fixture(scope="module", params=LIMITS)
def cohort(request, tmp_path_factory):
    """A store that is an index alone, and its number of cases."""
    path, few = tmp_path_factory.mktemp("cohort"), [case(number) for number in range(50)]
    cases = [replace(few[number % 50], name=f"case_{number:05}") for number in range(request.param)]
    write_index(path, ORGANS, cases)
    return path, request.param


def test_a_store_opens_soon(cohort):
    path, number = cohort
    assert shortest(lambda: seconds_of(Store.open, path), LIMITS[number]) <= LIMITS[number]


@pytest.mark.parametrize("cohort", [1_000], indirect=True)
def test_a_case_takes_little_memory(cohort):
    path, number = cohort
    tracemalloc.start()
    try:
        store = Store.open(path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store.cases) == number
    assert held < number * BYTES_OF_A_CASE
    np.testing.assert_array_equal(store.cases["case_00049"].counts(), case(49).counts())
