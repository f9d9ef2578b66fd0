"""Broken cases: described, left out, and no obstacle to the others."""

import json

import numpy as np
import pytest

from smile_fast.data.store import Store
from smile_runtime.errors import InputError
from tests.cohorts import SHAPE, edit_label, label_map
from tests.data.prepared import run


def test_broken_cases_are_left_out_and_reported(cohort, out):
    edit_label(cohort, "case_00", lambda labels: labels[..., :-1])
    edit_label(cohort, "case_02", lambda labels: np.full(SHAPE, 77, np.uint8))
    sentences = []
    done = run(cohort, out, report=sentences.append)
    assert (done.converted, done.kept, list(done.quarantined)) == (2, 0, ["case_00", "case_02"])
    assert list(done.quarantined.values()) == sentences
    assert "image of 20x24x8 voxels and a label map of 20x24x7" in sentences[0]
    assert "label value 77" in sentences[1]
    assert json.loads((out / "quarantine.json").read_text())["cases"] == done.quarantined
    assert list(Store.open(out).cases) == ["case_01", "case_03"]
    again = run(cohort, out)
    assert (again.converted, again.kept, again.quarantined) == (0, 2, done.quarantined)
    for case in ("case_00", "case_02"):
        edit_label(cohort, case, lambda labels: label_map())
    assert (run(cohort, out).converted, (out / "quarantine.json").exists()) == (2, False)
    assert list(Store.open(out).cases) == ["case_00", "case_01", "case_02", "case_03"]
    assert not list(out.rglob("broken.json"))


def test_strict_finishes_no_store_with_a_broken_case(cohort, out):
    edit_label(cohort, "case_00", lambda labels: labels[..., :-1])
    sentences = []
    with pytest.raises(InputError, match="the store is not finished, 1 of 4 cases are broken"):
        run(cohort, out, strict=True, report=sentences.append)
    assert json.loads((out / "quarantine.json").read_text())["cases"] == {"case_00": sentences[0]}
    assert not (out / "index.json").exists()
    edit_label(cohort, "case_00", lambda labels: label_map())
    assert run(cohort, out, strict=True).kept == 3


def test_nothing_to_train_on_is_refused(cohort, out):
    for case in ("case_00", "case_01", "case_02"):
        edit_label(cohort, case, lambda labels: labels[..., :-1])
    with pytest.raises(InputError, match="every training case is broken"):
        run(cohort, out)
    assert not (out / "index.json").exists()
