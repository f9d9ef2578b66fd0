"""A `prepare` of changed data while a training reads the store: it trains on what it has begun with."""

import shutil

import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data.store import Store
from smile_fast.training.metrics import MetricsLog
from smile_fast.training.run import Run
from tests.cohorts import annotate, edit_label, make_cohort, other_image, write_nifti

NETWORK = "--backbone resnet18 --width 8 --rates 1 --crop-size 32 --batch-size 2 --epochs 2 --device cpu"


@pytest.fixture
def work(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    annotate(make_cohort(tmp_path / "cohort", train=3, test=1))
    assert main("prepare cohort store --workers 1".split()) == 0
    shutil.copytree("cohort", "changed")
    edit_label(tmp_path / "changed", "case_00", lambda labels: np.roll(labels, 1, axis=2))
    write_nifti(tmp_path / "changed" / "imagesTr" / "case_01_0000.nii.gz", other_image())
    return tmp_path


def test_a_running_training_keeps_its_data(work, capsys, monkeypatch):
    assert main(f"train store expected {NETWORK}".split()) == 0
    add, done = MetricsLog.add, []

    def disturbed(self, *arguments):
        add(self, *arguments)
        done.append(1)
        if len(done) == 2:
            assert main("prepare changed store --workers 1".split()) == 0

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "add", disturbed)
        assert main(f"train store run {NETWORK}".split()) == 0
    assert len(done) > 4
    found, expected = Run.open(work / "run").model_path, Run.open(work / "expected").model_path
    assert found.read_bytes() == expected.read_bytes()
    capsys.readouterr()
    for command in ("train store run --resume --device cpu", "evaluate run --device cpu"):
        assert main(command.split()) == 2
        assert "the store was made from other files than the run run was trained on" in capsys.readouterr().err
    assert main("prepare changed store --workers 1".split()) == 0  # what nobody reads any more goes
    store = Store.open(work / "store")
    named = {path for path in store.files() if path.suffix == ".b2nd"}
    assert {path for path in store.path.rglob("*.b2nd")} == named
