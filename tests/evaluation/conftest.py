"""A run with three held-out cases, of which one lacks an organ and one holds none."""

import numpy as np
import pytest

from smile_fast.supervision import State
from tests.runs import SHAPE, make_run, make_store, truth


@pytest.fixture
def run(tmp_path):
    empty = np.zeros(SHAPE, np.uint8)
    without_pancreas = np.where(truth() == 2, 0, truth()).astype(np.uint8)
    states = {
        ("test_1", "pancreas"): State.MISSING,
        ("test_2", "liver"): State.ABSENT,
        ("test_2", "pancreas"): State.ABSENT,
    }
    labels = {"train_0": truth(), "test_0": truth(), "test_1": without_pancreas, "test_2": empty}
    return make_run(tmp_path / "run", make_store(tmp_path / "store", labels, states))
