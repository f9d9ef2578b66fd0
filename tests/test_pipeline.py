"""The whole job through the command line: from a raw dataset to a segmented scan and a report."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from smile_fast.cli.main import main
from smile_fast.data.store import Store
from smile_fast.exporter import onnx_file
from smile_fast.supervision import State
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.metrics import read_metrics
from smile_fast.training.rounds import existing_rounds
from smile_fast.training.run import Run
from smile_runtime.model.exported import Model
from smile_runtime.predict import cli as predict_cli
from tests.cohorts import tree
from tests.runs import balance
from tests.tolerances import DICE_OF_EXPORTED, IDENTICAL_SHARE

ORGANS = ("liver", "pancreas", "stomach")
CASES = ("case_0000", "case_0001", "case_0002")
METHODS = ("baseline", "smile", "smiler")
NETWORK = "--backbone resnet18 --width 8 --rates 1 2 --crop-size 32 --batch-size 4 --epochs 0.3 --threads 1"


def run(command: str) -> None:
    assert main(command.split()) == 0, command


def see_something(trained: Run) -> None:
    """Three steps teach nothing: shift the organs' thresholds until each is seen in half of the pixels."""
    model = trained.load_model()
    balance(model, trained.store.read_image("test_0000")[:, None])
    Checkpoint({"model": dict(model.state_dict())}).save(trained.model_path)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Every command of the README once, in its order; the tests below look at what they left."""
    folder, before, threads = tmp_path_factory.mktemp("job"), Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    try:
        run("phantom cohort --train 3 --test 1 --size 48 --slices 10 --workers 1")
        raw = tree(Path("cohort"))
        Path("cohort/annotations.csv").unlink()  # as in a folder that was made for nnU-Net
        run("declare cohort --yes")
        run("simulate-missing cohort --alpha 0.5 --seed 1 --output partial.csv")
        run("audit cohort --annotations partial.csv --json audit.json")
        run("prepare cohort store --annotations partial.csv --workers 1")
        prepared = tree(Path("store"))
        for method in METHODS:
            run(f"train store {method} --method {method} --rounds 1 {NETWORK}")
        see_something(Run.open(Path("smiler")))
        run("relabel smiler --gamma 0.5 --threads 1")
        for method in METHODS:
            run(f"evaluate {method} --threads 1")
        run("export smiler model.onnx")
        handler = signal.getsignal(signal.SIGTERM)
        assert predict_cli.main("model.onnx cohort/imagesTs/test_0000_0000.nii.gz -o labels.nii.gz".split()) == 0
        signal.signal(signal.SIGTERM, handler)
        run("report smiler smile baseline -o report.html")
        assert {name: content for name, content in tree(Path("cohort")).items() if name in raw} == raw
        assert tree(Path("store")) == prepared
        yield folder
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def test_declarations(job):
    declared, partial = (
        {(row["case"], row["organ"]): row["state"] for row in csv.DictReader((job / file).read_text().splitlines())}
        for file in ("cohort/annotations.csv", "partial.csv")
    )
    assert set(declared) == set(partial) == {(case, organ) for case in (*CASES, "test_0000") for organ in ORGANS}
    assert set(declared.values()) == {"annotated"}
    for organ in ORGANS:
        hidden = [case for case in CASES if partial[case, organ] == "hidden"]
        assert len(hidden) == 2  # half of three, rounded; one is left
        assert partial["test_0000", organ] == "annotated"


def test_audit(job):
    record = json.loads((job / "audit.json").read_text())
    assert [organ["organ"] for organ in record["organs"]] == list(ORGANS)
    assert all(organ["alpha"] == pytest.approx(2 / 3) for organ in record["organs"])


def test_store(job):
    store = Store.open(job / "store")
    assert store.organs == ORGANS
    assert {name: info.split for name, info in store.cases.items()} == dict.fromkeys(CASES, "train") | {
        "test_0000": "test"
    }
    for info in store.cases.values():
        assert (info.shape, info.split == "test") == ((10, 48, 48), info.name == "test_0000")
        for organ, state in info.states.items():
            assert (organ in info.runs) == (state is not State.HIDDEN)


@pytest.mark.parametrize("method", METHODS)
def test_run_folders(job, method):
    trained = Run.open(job / method)
    assert trained.config.method == method
    assert trained.store_path == (job / "store").resolve()
    assert trained.cases("test") == ["test_0000"]
    assert trained.config.model.outputs == (4 if method == "baseline" else 3)
    losses = [line["loss"] for line in read_metrics(trained)]
    assert len(losses) == (2 if method == "smiler" else 1)
    assert np.isfinite(losses).all()
    trained.load_model()
    assert existing_rounds(trained.rounds_path) == ([1, 2] if method == "smiler" else [])
    environment = json.loads((trained.path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__


@pytest.mark.parametrize("method", METHODS)
def test_evaluations(job, method):
    record = json.loads((job / method / "evaluation.json").read_text())
    assert record["split"] == "test"
    assert record["cases"] == ["test_0000"]
    assert [pair["organ"] for pair in record["pairs"]] == list(ORGANS)
    assert all(0 <= pair["dice"] <= 1 for pair in record["pairs"])
    assert len((job / method / "evaluation.csv").read_text().splitlines()) == 1 + len(ORGANS)


def test_exported_file(job):
    model = Model(job / "model.onnx")
    assert model.card.organs == ORGANS
    assert model.card.provenance["method"] == "smiler"
    assert model.card.parity["identical_share"] == pytest.approx(1, **IDENTICAL_SHARE)


def test_prediction_lies_on_the_scans_grid(job):
    """And holds what the network says: smile-predict and torch agree."""
    scan, labels = (nib.load(job / file) for file in ("cohort/imagesTs/test_0000_0000.nii.gz", "labels.nii.gz"))
    assert labels.shape == scan.shape
    np.testing.assert_array_equal(labels.affine, scan.affine)
    assert nib.aff2axcodes(labels.affine) == nib.aff2axcodes(scan.affine)
    values = np.asarray(labels.dataobj)
    assert values.dtype == np.uint8
    assert set(np.unique(values)) == {0, 1, 2, 3}
    (job / "predictions").mkdir()
    (job / "predictions" / "test_0000.nii.gz").write_bytes((job / "labels.nii.gz").read_bytes())
    by_network = json.loads((job / "smiler" / "evaluation.json").read_text())
    run(f"evaluate {job / 'smiler'} --predictions {job / 'predictions'} --threads 1")
    by_file = json.loads((job / "smiler" / "evaluation-of-predictions.json").read_text())
    assert json.loads((job / "smiler" / "evaluation.json").read_text()) == by_network
    for one, other in zip(by_network["pairs"], by_file["pairs"], strict=True):
        assert one["dice"] == pytest.approx(other["dice"], **DICE_OF_EXPORTED)


def test_prediction_needs_no_torch(job, tmp_path):
    code = "import sys; sys.modules['torch'] = None; from smile_runtime.predict.cli import main; sys.exit(main())"
    scan = job / "cohort" / "imagesTs" / "test_0000_0000.nii.gz"
    command = [sys.executable, "-c", code, str(job / "model.onnx"), str(scan), "-o", str(tmp_path / "labels.nii.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again, first = (np.asarray(nib.load(folder / "labels.nii.gz").dataobj) for folder in (tmp_path, job))
    np.testing.assert_array_equal(again, first)


def test_relabelling(job):
    record = json.loads((job / "smiler" / "rounds" / "2" / "round.json").read_text())
    assert (record["round"], record["gamma"]) == (2, 0.5)
    declared = Run.open(job / "smiler").declarations()
    hidden = {case for case in CASES if State.HIDDEN in declared[case].values()}
    assert set(record["cases"]) == hidden != set()
    assert sum(counts["kept"] for case in record["cases"].values() for counts in case.values()) > 1000


def test_report(job):
    page = (job / "report.html").read_text(encoding="utf-8")
    for word in (*METHODS, *ORGANS, "pancreas"):
        assert word in page
    assert page.rstrip().endswith("</html>")
    assert "data:image/png;base64," in page
    assert 'src="http' not in page


def test_a_disk_that_fills_up_during_the_export_leaves_the_last_file(job, monkeypatch, capsys):
    before = tree(job)
    smiler = Run.open(job / "smiler")
    built = onnx_file.build(smiler, smiler.store, smiler.load_model(), "fp32", "float32")
    monkeypatch.setattr(onnx_file, "build", lambda *arguments: built)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("model.onnx", "other.onnx"):
        assert main(["export", str(job / "smiler"), str(job / name)]) == 2
        assert f"error: {job / name}: cannot be written (no space left on device)" in capsys.readouterr().err
    assert tree(job) == before
