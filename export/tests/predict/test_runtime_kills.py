"""A run over a folder that is killed, without a word, at every moment at which a file could be left half done."""

import json
import os
import shutil
import signal
import subprocess
import sys

import kill_moments
import pytest
from kill_moments import FINISHED, HALF_WRITTEN, INFERENCE, UNFINISHED
from nifti_files import random_hu, write
from tiny_models import threshold_card, write_threshold_model

from smile_runtime.io.nifti import read_note
from smile_runtime.predict.preview import fingerprint, shown_labels

SCANS, SLICES = 2, 2
FILES = 3 + 2 * SCANS  # two tables and the volumes, then a label map and a picture a scan


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, threshold_model):
    """Of a run into a folder: every slice a batch of its own, and every kind of file."""
    folder = tmp_path_factory.mktemp("killed") / "scans"
    folder.mkdir()
    for number in range(SCANS):
        write(folder / f"{number}.nii.gz", random_hu((60, 50, SLICES), number))

    def into(out, model=threshold_model):
        options = ["--preview", "--volumes", str(out / "volumes.csv"), "--continue", "--batch", "1", "--threads", "1"]
        return [str(model), str(folder), "-o", str(out), *options]

    return into


def run_all(jobs):
    """Status and counts of each job; see `kill_moments`."""
    done = subprocess.run(
        [sys.executable, kill_moments.__file__],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # only a defect takes that long
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    print(done.stderr)  # what the runs said: shown if the test fails
    assert done.returncode == 0
    return json.loads(done.stdout)


def content_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def test_a_kill_at_any_moment_leaves_nothing_partial_and_continue_finishes(tmp_path, arguments):
    [(status, counts)] = run_all([["", 0, arguments(tmp_path / "whole")]])
    wanted = content_of(tmp_path / "whole")
    assert (status, len(wanted)) == (0, FILES)
    # Every kind of moment was met as often as there are files or batches: none goes by unseen.
    assert counts == dict.fromkeys((*UNFINISHED, *FINISHED), FILES) | {INFERENCE: SCANS * SLICES}

    killed = {
        (moment, number): tmp_path / f"{number} {moment}"
        for moment, times in counts.items()
        for number in range(1, times + 1)
    }
    runs = run_all([[*when, arguments(out)] for when, out in killed.items()])
    assert [status for status, _ in runs] == [-signal.SIGKILL] * len(killed)
    for (moment, number), out in killed.items():
        check_what_is_left(moment, number, content_of(out), wanted)

    runs = run_all([["", 0, arguments(out)] for out in killed.values()])
    assert [status for status, _ in runs] == [0] * len(killed)
    for out in killed.values():
        assert content_of(out) == wanted


def test_a_kill_at_any_moment_leaves_no_picture_beside_other_labels(tmp_path, arguments):
    """The run replaces what another model has left: at no moment is one of the two old and the other new."""
    other = write_threshold_model(tmp_path / "other.onnx", card=threshold_card(provenance={"run": "other"}))
    assert [status for status, _ in run_all([["", 0, arguments(tmp_path / "old", other)]])] == [0]
    # From the second table, when all is old, to the last picture; the volumes come after.
    moments = [(moment, n) for moment in (*UNFINISHED, *FINISHED) for n in range(2, FILES)]
    killed = [shutil.copytree(tmp_path / "old", tmp_path / f"{n} {moment}") for moment, n in moments]
    runs = run_all([[*when, arguments(out)] for when, out in zip(moments, killed, strict=True)])
    assert [status for status, _ in runs] == [-signal.SIGKILL] * len(killed)
    seen = set()
    for out in killed:
        for number in range(SCANS):
            labels, picture = out / f"{number}.nii.gz", shown_labels(out / f"{number}.png")
            assert picture in (None, fingerprint(read_note(labels)[1])), labels
            seen.add((picture, labels.read_bytes()))
    assert len(seen) == 4 * SCANS  # old and new labels, each with its picture and without one


def check_what_is_left(moment, number, found, wanted):
    """Complete files and at most one that is not; how many of each, where one thread alone decides it."""
    unfinished = [body for name, body in found.items() if name.startswith(".tmp-")]
    complete = {name: body for name, body in found.items() if not name.startswith(".tmp-")}
    assert complete.items() <= wanted.items(), (moment, number)
    if moment == INFERENCE:  # the other thread may be writing, or not
        assert len(unfinished) <= 1
    else:
        assert len(unfinished) == (moment in UNFINISHED), (moment, number)
        assert len(complete) == number - (moment in UNFINISHED), (moment, number)
    if moment == HALF_WRITTEN:
        assert not set(unfinished) & set(wanted.values())
        assert any(body.startswith(unfinished[0]) for body in wanted.values())
