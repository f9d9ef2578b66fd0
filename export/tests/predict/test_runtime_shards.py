"""A folder that several runs share: the files of one run that does all, and what is missing is said."""

import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
from folder_runs import content_of, run
from nifti_files import random_hu, write
from tiny_models import threshold_card, write_threshold_model

from smile_runtime.predict.folder import output_folder

SHARDS = ("1/3", "2/3", "3/3")
TABLES = {"organs.label.txt", "organs.ctbl"}


@pytest.fixture
def whole(scans, tmp_path, threshold_model):
    """The files of one run that does all."""
    assert run(threshold_model, scans, tmp_path / "whole", "--preview") == 0
    return content_of(tmp_path / "whole")


def started(model, scans, out, *options):
    """A process that predicts."""
    return subprocess.Popen(
        [sys.executable, "-m", "smile_runtime", str(model), str(scans), "-o", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 2, 0)])
def test_shares_write_what_one_run_writes(scans, tmp_path, threshold_model, whole, capsys, order):
    out = tmp_path / "out"
    for number in order:
        assert run(threshold_model, scans, out, "--preview", "--shard", SHARDS[number]) == 0
    said = [f"share {SHARDS[n]}: {(2, 2, 1)[n]} of {(2, 2, 1)[n]} scans have their results in {out}" for n in order]
    assert capsys.readouterr().out.splitlines() == said
    assert content_of(out) == whole


def test_shares_run_at_once(scans, tmp_path, threshold_model, whole):
    """Real processes; one of them twice."""
    out = tmp_path / "out"
    processes = [started(threshold_model, scans, out, "--preview", "--shard", shard) for shard in (*SHARDS, "2/3")]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert content_of(out) == whole


def test_what_is_missing_is_said_and_written_by_whoever_continues(scans, tmp_path, threshold_model, whole, capsys):
    out = tmp_path / "out"
    finish = ("--preview", "--finish", "--report", str(tmp_path / "all.json"), "--volumes", str(tmp_path / "all.csv"))
    assert run(threshold_model, scans, out, *finish) == 2
    assert "5 of 5 scans have no results of this model and options (case 0.nii.gz, case 1" in capsys.readouterr().err
    for shard in (SHARDS[0], SHARDS[2]):
        assert run(threshold_model, scans, out, "--preview", "--shard", shard) == 0
    for _ in range(2):
        assert run(threshold_model, scans, out, *finish) == 2
        err = capsys.readouterr().err
        assert f"error: {out}: 2 of 5 scans have no results" in err
        assert "(case 1.nii.gz, case 4.nii.gz); run their shards" in err
        assert not (tmp_path / "all.json").exists()
    assert run(threshold_model, scans, out, "--preview", "--continue") == 0
    assert "5 of 5 scans have their results" in capsys.readouterr().out
    assert run(threshold_model, scans, out, *finish) == 0
    assert f"all 5 scans have their results in {out}" in capsys.readouterr().out
    assert content_of(out) == whole
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["counts"] == {"written": 0, "already complete": 5, "failed": 0}
    assert len((tmp_path / "all.csv").read_text().splitlines()) > 5


def test_other_options_are_not_what_was_asked_for(scans, tmp_path, threshold_model, capsys):
    out = tmp_path / "out"
    assert run(threshold_model, scans, out, "--shard", "1/1") == 0
    other = write_threshold_model(tmp_path / "other.onnx", card=threshold_card(provenance={"run": "other"}))
    assert run(other, scans, out, "--finish") == 2
    assert "5 of 5 scans have no results of this model and options" in capsys.readouterr().err
    assert run(threshold_model, scans, out, "--finish") == 0


def test_each_share_has_its_own_report_and_volumes(scans, tmp_path, threshold_model):
    for shard in SHARDS:
        options = ("--report", str(tmp_path / "ran.json"), "--volumes", str(tmp_path / "ml.csv"), "--shard", shard)
        assert run(threshold_model, scans, tmp_path / "out", *options) == 0
    reports = [json.loads((tmp_path / f"ran.{number}-of-3.json").read_text()) for number in (1, 2, 3)]
    names = [[os.path.basename(file["scan"]) for file in report["files"]] for report in reports]
    assert names == [[f"case {n}.nii.gz" for n in numbers] for numbers in ((0, 3), (1, 4), (2,))]
    assert sorted(path.name for path in tmp_path.glob("ml*")) == [f"ml.{number}-of-3.csv" for number in (1, 2, 3)]
    assert not (tmp_path / "ran.json").exists()


def test_a_report_that_is_a_share_of_another_file_is_refused(scans, tmp_path, threshold_model, capsys):
    (scans / "ml.2-of-3.csv").mkdir()
    options = ("--volumes", str(scans / "ml.csv"), "--shard", "2/3")
    assert run(threshold_model, scans, tmp_path / "out", *options) == 2
    assert "ml.2-of-3.csv: cannot be written, it is a folder" in capsys.readouterr().err


def test_scans_that_are_there_decide_alone_who_does_what(scans, tmp_path, threshold_model):
    """Not what is finished: with results of the first scans there, the others' numbers stay."""
    out = tmp_path / "out"
    assert run(threshold_model, scans, out, "--shard", "1/3", "--continue") == 0
    assert run(threshold_model, scans, out, "--shard", "2/3", "--continue") == 0
    assert set(content_of(out)) - TABLES == {f"case {number}.nii.gz" for number in (0, 3, 1, 4)}


def test_more_shares_than_scans(scans, tmp_path, threshold_model, capsys):
    assert run(threshold_model, scans, tmp_path / "out", "--shard", "9/9") == 0
    assert "share 9/9: 0 of 0 scans have their results" in capsys.readouterr().out


def test_shares_keep_out_runs_that_do_all_and_leave_what_is_unfinished(scans, tmp_path, threshold_model, capsys):
    out = tmp_path / "out"
    left = out / ".tmp-0123456789abcdef.nii.gz"
    with output_folder(out, with_others=True):
        left.touch()  # of a run that is at work
        for options in ((), ("--continue",), ("--finish",)):
            assert run(threshold_model, scans, out, *options) == 2
            assert f"{out}: another smile-predict writes to it; wait" in capsys.readouterr().err
        assert run(threshold_model, scans, out, "--shard", "1/2") == 0
        assert left.exists()
    assert run(threshold_model, scans, out, "--shard", "2/2") == 0
    assert left.exists()
    assert run(threshold_model, scans, out, "--finish") == 0
    assert not left.exists()
    with output_folder(out):
        assert run(threshold_model, scans, out, "--shard", "1/2") == 2
    assert "another smile-predict writes to it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shard", "why"),
    [
        ("0/3", "'0/3' is no share of the work; give I/N with I from 1 to N, or auto"),
        ("auto", "none of RANK, SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX is set here"),
    ],
)
def test_what_is_no_share_is_refused(scans, tmp_path, threshold_model, capsys, shard, why):
    with pytest.raises(SystemExit) as stop:
        run(threshold_model, scans, tmp_path / "out", "--shard", shard)
    assert stop.value.code == 2
    assert why in capsys.readouterr().err


def test_a_share_and_the_end_of_all_are_not_one_run(scans, tmp_path, threshold_model, capsys):
    assert run(threshold_model, scans, tmp_path / "out", "--shard", "1/3", "--finish") == 2
    assert "--finish: looks at what all shares did; leave --shard out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--shard", "1/2"), ("--finish",)])
def test_shares_are_of_folders(scans, tmp_path, threshold_model, capsys, option):
    scan = next(scans.iterdir())
    assert run(threshold_model, scan, tmp_path / "labels.nii.gz", *option) == 2
    assert f"{option[0]}: {scan} is not a folder; give a folder of scans, or leave {option[0]} out" in (
        capsys.readouterr().err
    )


def test_shares_that_are_killed_are_done_again(scans, tmp_path, threshold_model):
    """SIGKILL after so many files are there: the others go on, and a second try completes the share."""
    for number in range(6, 14):
        write(scans / f"case {number}.nii.gz", random_hu((60, 50, 4), number))
    assert run(threshold_model, scans, tmp_path / "whole") == 0
    out = tmp_path / "out"
    with ExitStack() as running:
        for shard, count in zip(SHARDS, itertools.cycle((1, 3, 2)), strict=False):
            process = running.enter_context(started(threshold_model, scans, out, "--shard", shard, "--continue"))
            while process.poll() is None and len(list(out.glob("case*"))) < count:
                pass
            process.send_signal(signal.SIGKILL)
    for shard in SHARDS:
        assert run(threshold_model, scans, out, "--shard", shard, "--continue") == 0
    assert run(threshold_model, scans, out, "--finish") == 0
    assert content_of(out) == content_of(tmp_path / "whole")
