"""Runs and stores that a report cannot be made of: one sentence, and no page."""

import shutil

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.report.collect import collect, open_runs
from smile_fast.supervision import State
from smile_runtime.errors import InputError
from smile_runtime.label_map import PSEUDO_BIT
from tests.cohorts import array_file, damage_array
from tests.runs import add_round, make_run, make_store, truth

OVERLAY = np.where(truth() == 1, PSEUDO_BIT | 1, 0).astype(np.uint8)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "store", {"train_1": truth()}, {("train_1", "liver"): State.HIDDEN})


@pytest.mark.parametrize(
    ("folder", "name"),
    [("run/rounds/1", "train_1"), ("store/cases/train_1", "labels"), ("store/cases/train_1", "image")],
)
def test_a_damaged_array_is_one_sentence(store, tmp_path, capsys, folder, name):
    run = make_run(tmp_path / "run", store, method="smiler", trained=False)
    add_round(run, 1, {"train_1": OVERLAY})
    target = array_file(tmp_path / folder, name)
    damage_array(target)
    assert main(["report", str(run.path)]) == 2
    assert f"error: {target}: damaged" in capsys.readouterr().err


def test_only_finished_rounds_are_shown(store, tmp_path):
    run = make_run(tmp_path / "run", store, method="smiler", trained=False)
    add_round(run, 2, {"train_1": OVERLAY})
    add_round(run, 10, {"train_1": OVERLAY})
    shutil.copytree(run.rounds_path / "2", run.rounds_path / "1.bak")
    (run.rounds_path / "3").mkdir()
    assert [row.number for row in collect(open_runs([run.path]))[0].rounds] == [2, 10]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "cannot be read as a relabelling round"),
        ("[]", "not valid JSON"),
        ('{"round": 1, "gamma": null, "scope": "volume", "cases": {}}', "cannot be read as a relabelling round"),
        ('{"round": 1, "gamma": 0.5, "scope": "volume", "cases": []}', "cannot be read as a relabelling round"),
        (
            '{"round": 1, "gamma": 0.5, "scope": "volume", "cases": {"train_1": {"liver": {}}}}',
            "KeyError: 'candidates'",
        ),
        (
            '{"round": 1, "gamma": 0.5, "scope": "volume", "cases": {"train_9": {}}, "slices": {"train_9": {}}}',
            "train_9, which is no case",
        ),
    ],
)
def test_a_damaged_round_is_refused(store, tmp_path, capsys, damage, message):
    run = make_run(tmp_path / "run", store, method="smiler", trained=False)
    add_round(run, 1, {"train_1": OVERLAY})
    (run.rounds_path / "1" / "round.json").write_text(damage)
    assert main(["report", str(run.path)]) == 2
    err = capsys.readouterr().err
    assert f"error: {run.rounds_path / '1' / 'round.json'}" in err
    assert message in err
    assert not (run.path / "report.html").exists()


@pytest.mark.parametrize(
    "damage", ['{"iteration": 1}', '{"iteration": 1, "round": "x"}', '{"iteration": 1, "round": 0, "validation": 1}']
)
def test_damaged_metrics_are_refused(store, tmp_path, damage):
    run = make_run(tmp_path / "run", store, trained=False)
    run.metrics_path.write_text(damage)
    with pytest.raises(InputError, match=r"metrics\.jsonl: a line is no record of training .*; restore it"):
        collect(open_runs([run.path]))
