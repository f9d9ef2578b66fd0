"""Folders: overlap, bad files, reports, and going on after an interruption; kills are in test_runtime_kills."""

import fcntl
import gzip
import json
import os
import time

import numpy as np
import pytest
from folder_runs import content_of, run
from nifti_files import content, random_hu, write
from tiny_models import threshold_card, threshold_labels, write_threshold_model
from tolerances import AFFINE_RELATIVE

from smile_runtime import __version__
from smile_runtime.io.files import sha256
from smile_runtime.io.nifti import read_labels, read_note
from smile_runtime.predict.cli import main
from smile_runtime.predict.folder import list_jobs
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.body import BodyRule


def test_every_scan_gets_what_it_gets_alone(scans, tmp_path, threshold_model, capsys):
    assert run(threshold_model, scans, tmp_path / "out") == 0
    for number in range(5):
        name = f"case {number}.nii.gz"
        main([str(threshold_model), str(scans / name), "-o", str(tmp_path / "alone.nii.gz")])
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone.nii.gz").read_bytes()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*(f"case {n}.nii.gz" for n in range(5)), "organs.label.txt", "organs.ctbl"}
    printed = capsys.readouterr()
    assert printed.out.startswith(f"5 of 5 scans have their results in {tmp_path / 'out'}\n")
    assert printed.err.startswith("predict: 5/5 in ")


def test_a_bad_file_is_reported_and_the_rest_goes_on(scans, tmp_path, threshold_model, capsys):
    (scans / "case 1.nii.gz").write_bytes(b"nothing of the kind")
    (scans / "case 3.nii.gz").write_bytes(gzip.compress(content())[:-30])
    options = ["--report", str(tmp_path / "run.json"), "--volumes", str(tmp_path / "volumes.csv")]
    assert run(threshold_model, scans, tmp_path / "out", *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert "case 1.nii.gz: damaged" in errors[0]
    assert "case 3.nii.gz: cut short" in errors[1]
    assert errors[2] == f"error: {scans}: 2 of 5 scans could not be finished; see the errors above"
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["counts"] == {"written": 3, "already complete": 0, "failed": 2}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gz")) == [f"case {n}.nii.gz" for n in (0, 2, 4)]
    rows = (tmp_path / "volumes.csv").read_text().splitlines()
    assert rows[0] == "scan,organ,ml"
    assert len(rows) == 1 + 3 * 2


def test_a_scan_that_the_model_or_the_disk_refuses_is_no_others_trouble(scans, tmp_path, threshold_model, monkeypatch):
    (tmp_path / "out" / "case 2.nii.gz").mkdir(parents=True)  # cannot be replaced by a file
    assert run(threshold_model, scans, tmp_path / "out") == 2
    assert sum(path.is_file() for path in (tmp_path / "out").glob("*.gz")) == 4


def test_the_report_says_how_many_threads_there_were_by_default(scans, tmp_path, threshold_model, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run(threshold_model, scans, tmp_path / "out", "--report", str(tmp_path / "run.json")) == 0
    assert json.loads((tmp_path / "run.json").read_text())["threads"] == 3


def test_the_report_says_what_ran(scans, tmp_path):
    model = write_threshold_model(tmp_path / "m.onnx", card=threshold_card(body=BodyRule()))
    write(scans / "case 5.nii.gz", random_hu((9, 8, 7)).clip(-1010, -990))
    options = ["--report", str(tmp_path / "run.json"), "--threads", "1", "--volumes", str(tmp_path / "volumes.json")]
    started = time.monotonic()
    assert run(model, scans, tmp_path / "out", *options) == 0
    took = time.monotonic() - started
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["model"] == {"path": str(model), "sha256": sha256(model), "organs": ["bone", "metal"]}
    assert report["versions"]["smile-fast-runtime"] == __version__
    assert report["provider"] == {"asked": "cpu", "active": ["CPUExecutionProvider"]}
    assert report["threads"] == 1
    assert report["settings"]["body"] == {"threshold_hu": -500.0, "margin_mm": 5.0}
    assert 0 < report["seconds"] <= took + 0.001  # rounded
    assert report["peak_memory_bytes"] > 2**20
    assert [os.path.basename(file["scan"]) for file in report["files"]] == [f"case {n}.nii.gz" for n in range(6)]
    for file in report["files"]:
        assert set(file["seconds"]) == {"read", "inference", "write"}
    air = report["files"][5]
    assert (air["shape"], air["skipped_slices"]) == ([9, 8, 7], 7)
    volumes = json.loads((tmp_path / "volumes.json").read_text())
    assert volumes["unit"] == "ml"
    hu = random_hu((30, 20, 5), 0)
    voxel = 0.75 * 0.8 * 2.5 / 1000
    assert volumes["volumes"]["case 0.nii.gz"]["metal"] == pytest.approx(
        np.count_nonzero(hu > 300) * voxel, rel=AFFINE_RELATIVE
    )


def test_continue_keeps_what_is_complete_and_redoes_the_rest(scans, tmp_path, threshold_model, capsys):
    out, report = tmp_path / "out", ["--report", str(tmp_path / "run.json")]
    assert run(threshold_model, scans, out, "--preview") == 0
    complete = content_of(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "case 1.nii.gz").unlink()
    (out / "case 2.nii.gz").write_bytes((out / "case 0.nii.gz").read_bytes()[:50])  # as another program leaves it
    (out / "case 3.png").unlink()
    stale = tmp_path / "stale"
    stale.mkdir()
    write(stale / "case 4.nii.gz", random_hu((16, 12, 4), 7))  # another scan of this name, this shape and this model
    assert run(threshold_model, stale, tmp_path / "stale out", "--preview") == 0
    for path in (tmp_path / "stale out").glob("case 4.*"):
        path.replace(out / path.name)
    os.utime(scans / "case 4.nii.gz", (1e9, 1e9))  # its labels are newer, and not its own
    os.utime(scans / "case 0.nii.gz", (2e9, 2e9))  # as a copy is: newer than its labels, and the same scan
    assert run(threshold_model, scans, out, "--preview", "--continue", *report) == 0
    assert "(1 kept)" in capsys.readouterr().out
    assert content_of(out) == complete
    assert (out / "case 0.nii.gz").stat().st_mtime_ns == times["case 0.nii.gz"]
    files = json.loads((tmp_path / "run.json").read_text())["files"]
    assert [file["status"] for file in files] == ["already complete", *["written"] * 4]
    assert all(len(file["volumes_ml"]) == 2 for file in files)
    assert run(threshold_model, scans, out) == 0  # without --continue all are done again
    assert content_of(out) == complete


def test_labels_of_another_model_or_setting_are_not_kept(scans, tmp_path, threshold_model):
    out = tmp_path / "out"
    other = write_threshold_model(tmp_path / "other.onnx", card=threshold_card(provenance={"run": "other"}))
    report = ["--continue", "--report", str(tmp_path / "run.json")]

    def kept(model, *options):
        assert run(model, scans, out, *report, *options) == 0
        return json.loads((tmp_path / "run.json").read_text())["counts"]["already complete"]

    assert kept(threshold_model) == 0
    assert kept(threshold_model) == 5
    assert kept(other) == 0
    body = write_threshold_model(tmp_path / "body.onnx", card=threshold_card(body=BodyRule()))
    assert (kept(body), kept(body), kept(body, "--no-crop"), kept(body, "--no-crop")) == (0, 5, 0, 5)


def test_the_label_map_says_how_it_was_made(scans, tmp_path, threshold_model):
    assert run(threshold_model, scans, tmp_path / "out") == 0
    shape, note = read_note(tmp_path / "out" / "case 0.nii.gz")
    facts = json.loads(note)
    assert shape == (30, 20, 5)
    assert facts["organs"] == ["bone", "metal"]
    assert facts["settings"]["model_sha256"] == sha256(threshold_model)
    assert read_note(scans / "case 0.nii.gz") is None
    assert read_note(tmp_path / "none.nii.gz") is None


def test_only_one_run_writes_to_a_folder(scans, tmp_path, threshold_model, capsys):
    out = tmp_path / "out"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    unfinished = out / ".tmp-0123456789abcdef.nii.gz"
    unfinished.touch()
    assert run(threshold_model, scans, out) == 2
    assert "another smile-predict writes to it" in capsys.readouterr().err
    assert unfinished.exists()
    os.close(handle)
    (out / ".tmp-mine").touch()
    assert run(threshold_model, scans, out) == 0
    assert not unfinished.exists()
    assert (out / ".tmp-mine").exists()


def test_what_counts_as_a_scan(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.nii", "b_0000.nii.gz", "c_0001.nii.gz", "D.NII.GZ", ".hidden.nii", "labels.csv", "e.nii.txt"):
        (folder / name).touch()
    jobs = list_jobs(folder, tmp_path / "out", previews=True)
    assert [job.scan.name for job in jobs] == ["D.NII.GZ", "a.nii", "b_0000.nii.gz", "c_0001.nii.gz"]
    assert [job.labels.name for job in jobs] == ["D.nii.gz", "a.nii.gz", "b.nii.gz", "c_0001.nii.gz"]
    assert jobs[2].picture == tmp_path / "out" / "b.png"


def two_of_one_name(folder, out):
    write(folder / "case 0.nii", random_hu((3, 3, 3)))


def one_name_in_two_spellings(folder, out):
    for name in ("M\u00fcller.nii.gz", "Mu\u0308ller_0000.NII"):
        write(folder / name, random_hu((3, 3, 3)))


def no_name(folder, out):
    write(folder / " _0000.nii.gz", random_hu((3, 3, 3)))


def two_channels(folder, out):
    write(folder / "a_0000.nii.gz", random_hu((3, 3, 3)))
    write(folder / "a_0001.nii", random_hu((3, 3, 3)))


def test_every_ending_and_spelling_gets_its_labels_and_other_scans_are_named(tmp_path, threshold_model, capsys):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for name in ("a.NII.GZ", "b_0000.Nii.Gz", "c.NII", "Mu\u0308ller _0000.nii.gz", " d .nii"):
        write(folder / name, random_hu((3, 3, 3)))
    (folder / "e.nrrd").touch()
    assert run(threshold_model, folder, out) == 0
    assert {path.name for path in out.glob("*.gz")} == {
        f"{name}.nii.gz" for name in ("a", "b", "c", "M\u00fcller", "d")
    }
    warning = f"warning: {folder}: holds scans that are no NIfTI files ('e.nrrd'); convert them, or move them away"
    assert warning in capsys.readouterr().err.splitlines()


def link_to_a_scan(folder, out):
    out.mkdir()
    (out / "case 1.nii.gz").symlink_to(folder / "case 0.nii.gz")


def a_file(folder, out):
    out.touch()


@pytest.mark.parametrize(
    ("prepare", "options", "why"),
    [
        (two_of_one_name, [], "would get one name"),
        (one_name_in_two_spellings, [], r"'Mu\u0308ller_0000.NII' and 'M\xfcller.nii.gz' would get one name"),
        (no_name, [], "not a name for a scan"),
        (two_channels, [], "a_0000.nii.gz and a_0001.nii are named like two channels"),
        (link_to_a_scan, [], "is a link to a scan"),
        (a_file, [], "out: cannot be written to ("),
        (None, ["--volumes", "volumes.txt"], "give one that ends in .csv or .json"),
        (None, ["--organ-table", "table.xml"], "give one that ends in .txt"),
        (None, ["--report", "none/run.json"], "does not exist"),
        (None, ["--report", "{scans}/case 0.nii.gz"], "give one that ends in .json"),
        (None, ["--organ-table", "env.sh"], "give one that ends in .txt"),
        (None, ["--volumes", "{out}/case 0.csv", "--report", "{model}"], "give one that ends in .json"),
    ],
)
def test_what_a_folder_is_refused_for(scans, tmp_path, threshold_model, capsys, prepare, options, why):
    out = tmp_path / "out"
    if prepare:
        prepare(scans, out)
    before = content_of(scans)
    options = [option.format(scans=scans, out=out, model=threshold_model) for option in options]
    assert run(threshold_model, scans, out, *options) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert why in errors[0]
    assert content_of(scans) == before


def test_a_folder_is_not_named_like_a_file(scans, tmp_path, threshold_model, capsys):
    assert run(threshold_model, scans, tmp_path / "o.nii.gz") == 2
    assert "o.nii.gz: named like a file" in capsys.readouterr().err
    assert not (tmp_path / "o.nii.gz").exists()


def test_another_patients_scan_among_the_results_stays(scans, tmp_path, threshold_model, capsys):
    (tmp_path / "out").mkdir()
    other = write(tmp_path / "out" / "case 1.nii.gz", random_hu((3, 3, 3)))
    write(tmp_path / "out" / "case 2.nii.gz", np.ones((3, 3, 3), np.uint8))
    before = other.read_bytes()
    assert run(threshold_model, scans, tmp_path / "out") == 2
    assert f"{other}: would replace what may be a scan" in capsys.readouterr().err
    assert other.read_bytes() == before
    for number in (0, 2, 3, 4):
        assert read_note(tmp_path / "out" / f"case {number}.nii.gz") is not None


def test_the_results_never_lie_among_the_scans(scans, threshold_model, capsys):
    before = content_of(scans)
    assert run(threshold_model, scans, scans) == 2
    assert "is the folder of the scans; choose another output folder" in capsys.readouterr().err
    assert content_of(scans) == before


def test_continue_is_for_folders(scans, tmp_path, threshold_model, capsys):
    assert run(threshold_model, scans / "case 0.nii.gz", tmp_path / "a.nii.gz", "--continue") == 2
    assert "case 0.nii.gz is not a folder; give a folder of scans" in capsys.readouterr().err


def test_ctrl_c_in_a_folder_leaves_complete_files_only(scans, tmp_path, threshold_model, monkeypatch, capsys):
    def interrupted(self, scan, **options):
        if "case 2" in str(scan.volume.path):
            raise KeyboardInterrupt
        real(self, scan, **options)

    real = Predictor.segment
    monkeypatch.setattr(Predictor, "segment", interrupted)
    assert run(threshold_model, scans, tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    for number in range(5):
        path = tmp_path / "out" / f"case {number}.nii.gz"
        if path.exists():
            assert np.array_equal(
                read_labels(path).data, threshold_labels(random_hu(read_labels(path).data.shape, number))
            )
    assert not list((tmp_path / "out").glob(".tmp-*"))
