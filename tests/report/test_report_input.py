"""Runs and stores that a report cannot be made of: one sentence, and no page."""

import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.records import write_record
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


def opened(run):
    with ExitStack() as held:
        return open_runs([run.path], None, held)


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
    assert [row.number for row in collect(opened(run))[0].rounds] == [2, 10]


@pytest.mark.parametrize("damage", ["{", "{}", "[]", '{"round": 1}'])
def test_what_is_no_round_is_refused(store, tmp_path, capsys, damage):
    file = spoiled_round(store, tmp_path)
    file.write_text(damage)
    assert_refused(file, "damaged (its end is missing or changed)", capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": None}, "$.gamma"),
        ({"cases": []}, "$.cases"),
        ({"cases": {"train_1": {"liver": {}}}}, "numbers of voxels"),
        ({"cases": {}}, "its lists are of different cases"),
        ({part: {"train_9": {}} for part in ("cases", "slices")} | {"digests": {"train_9": "0" * 64}}, "train_9"),
    ],
    ids=str,
)
def test_a_round_of_something_else_is_refused(store, tmp_path, capsys, change, message):
    file = spoiled_round(store, tmp_path)
    record = json.loads(file.read_text())
    del record["sha256"]
    write_record(file, record | change)
    assert_refused(file, message, capsys)


def spoiled_round(store, folder):
    """The round.json of a run, to be spoiled."""
    run = make_run(folder / "run", store, method="smiler", trained=False)
    add_round(run, 1, {"train_1": OVERLAY})
    return run.rounds_path / "1" / "round.json"


def assert_refused(file, message, capsys):
    run = file.parents[2]
    assert main(["report", str(run)]) == 2
    err = capsys.readouterr().err
    assert f"error: {file}: " in err
    assert message in err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "damage", ['{"iteration": 1}', '{"iteration": 1, "round": "x"}', '{"iteration": 1, "round": 0, "validation": 1}']
)
def test_damaged_metrics_are_refused(store, tmp_path, damage):
    run = make_run(tmp_path / "run", store, trained=False)
    run.metrics_path.write_text(f"{damage}\n" * 2)  # the last line may be cut off
    with pytest.raises(InputError, match=r"metrics\.jsonl: .*; restore"):
        collect(opened(run))
