"""Names that are not UTF-8, what is in the way of the results, results in each other's way, and two runs at once."""

import csv
import fcntl
import json
import os

import pytest
from nifti_files import random_hu, write
from tiny_models import METADATA_KEY, threshold_card, write_threshold_model

from smile_runtime.io.nifti import read_labels
from smile_runtime.predict.cli import main
from smile_runtime.predict.predictor import Predictor


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        write(folder / f"c{number}.nii.gz", random_hu((8, 9, 3), number))
    return folder


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(model, scan, out, *options):
    return main([str(model), str(scan), "-o", str(out), *map(str, options)])


def latin1(path, name):
    """A name of a file as an old archive leaves it: not UTF-8."""
    return path / os.fsdecode(name.encode("latin-1"))


def test_names_that_are_not_utf8_are_written_with_their_bytes(scans, out, tmp_path, threshold_model, capfd):
    (scans / "c1.nii.gz").rename(latin1(scans, "café.nii.gz"))
    latin1(scans, "não.nii.gz").write_bytes(b"no scan")
    options = ["--report", tmp_path / "run.json", "--volumes"]
    assert run(threshold_model, scans, out, *options, tmp_path / "v.csv") == 2
    assert run(threshold_model, scans, out, *options, tmp_path / "v.json") == 2
    assert latin1(out, "café.nii.gz").exists()
    with open(tmp_path / "v.csv", encoding="utf-8", newline="") as file:
        assert {row["scan"] for row in csv.DictReader(file)} == {"c0.nii.gz", "caf\\xe9.nii.gz"}
    assert set(json.loads((tmp_path / "v.json").read_text("utf-8"))["volumes"]) == {"c0.nii.gz", "caf\\xe9.nii.gz"}
    files = json.loads((tmp_path / "run.json").read_text("utf-8"))["files"]
    assert sorted(os.path.basename(file["scan"]) for file in files) == [
        "c0.nii.gz",
        "caf\\xe9.nii.gz",
        "n\\xe3o.nii.gz",
    ]
    assert "n\\xe3o.nii.gz" in next(file["error"] for file in files if file["status"] == "failed")


def test_a_name_that_is_not_utf8_is_printed_with_its_bytes(scans, out, tmp_path, threshold_model, capfd):
    model = latin1(tmp_path, "modèle.onnx")
    model.write_bytes(threshold_model.read_bytes())
    report = tmp_path / "run.json"
    assert run(model, scans / "c0.nii.gz", latin1(out, "café.nii.gz"), "--report", report) == 0
    assert "caf\\xe9.nii.gz in " in capfd.readouterr().out
    assert json.loads(report.read_text("utf-8"))["model"]["path"].endswith("mod\\xe8le.onnx")
    assert run(model, scans, latin1(tmp_path, "é")) == 0
    assert "\\xe9" in capfd.readouterr().out


@pytest.mark.parametrize("window", [[-(10**400), 240], [-160, 10**400]])
def test_a_window_beyond_all_numbers_is_refused(tmp_path, capsys, scans, out, window):
    card = json.loads(threshold_card().to_json()) | {"window": window}
    model = write_threshold_model(tmp_path / "m.onnx", metadata=[(METADATA_KEY, json.dumps(card))])
    assert run(model, scans / "c0.nii.gz", out / "a.nii.gz") == 2
    assert "two finite numbers are wanted" in capsys.readouterr().err


def test_a_folder_named_like_a_temporary_file_stays(scans, out, threshold_model):
    folder, link = out / ".tmp-0123456789abcdef", out / ".tmp-fedcba9876543210"
    folder.mkdir()
    link.symlink_to("c0.nii.gz")
    assert run(threshold_model, scans, out) == 0
    assert folder.is_dir()
    assert link.is_symlink()


def test_a_folder_whose_name_is_too_long_is_refused(scans, tmp_path, threshold_model, capsys):
    assert run(threshold_model, scans, tmp_path / ("a" * 300)) == 2
    assert "file name too long" in capsys.readouterr().err


def test_a_result_that_is_a_link_to_the_model_is_refused(scans, out, tmp_path, threshold_model, capsys):
    model = tmp_path / "model.onnx"
    model.write_bytes(threshold_model.read_bytes())
    (out / "c0.nii.gz").symlink_to(model)
    assert run(model, scans, out) == 2
    assert "is a link to the model" in capsys.readouterr().err
    assert model.read_bytes() == threshold_model.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["--volumes", "{out}/a.json", "--report", "{out}/a.json"],
        ["--organ-table", "{out}/a.json", "--organ-table", "{out}/a.json"],
        ["--organ-table", "{out}/organs.ctbl"],
        ["--organ-table", "{out}/organs.label.txt"],
    ],
)
def test_no_result_of_a_folder_replaces_another(scans, out, threshold_model, capsys, options):
    assert run(threshold_model, scans, out, *(option.format(out=out) for option in options)) == 2
    assert "would overwrite the other output" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_the_same_tables_may_be_written_again(scans, out, tmp_path, threshold_model):
    report = ["--report", out / "run.json"]
    assert run(threshold_model, scans, out, *report) == 0
    assert run(threshold_model, scans, out, *report) == 0


def locks(folder):
    """Whether another process could have the folder for itself now."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def test_a_folder_run_waits_for_no_single_run_and_takes_nothing_from_it(
    scans, out, threshold_model, capsys, monkeypatch
):
    """A folder run begins while the label map of a single one is half written: that one keeps its temporary file."""
    status = []

    def save(self, scan, path, **options):
        unfinished = out / ".tmp-0123456789abcdef.nii.gz"
        unfinished.touch()
        if not status:
            status.append(None)
            status[0] = run(threshold_model, scans, out)
            assert unfinished.exists()
        return real(self, scan, path, **options)

    real = Predictor.save
    monkeypatch.setattr(Predictor, "save", save)
    assert run(threshold_model, scans / "c0.nii.gz", out / "alone.nii.gz") == 0
    assert status == [2]
    assert "another smile-predict writes to it" in capsys.readouterr().err
    assert read_labels(out / "alone.nii.gz").data.shape == (8, 9, 3)
    assert locks(out)


def test_single_runs_may_share_a_folder_but_not_with_a_folder_run(scans, out, threshold_model, capsys):
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    assert run(threshold_model, scans / "c0.nii.gz", out / "alone.nii.gz") == 0
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert run(threshold_model, scans / "c0.nii.gz", out / "second.nii.gz") == 2
    assert "another smile-predict writes to it" in capsys.readouterr().err
    os.close(handle)
