"""Bad input of every kind through the command: one sentence, status 2, nothing left behind."""

import gzip
import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from malformed_models import MODELS
from malformed_scans import SCANS, make_folder, make_pipe, tiny_lie
from nifti_files import write
from tiny_models import (
    write_threshold_model,
)

from smile_runtime.errors import InputError
from smile_runtime.model.exported import Model
from smile_runtime.predict.cli import main


def output(name):
    return lambda folder: {"out": folder / "out" / name}


def prepared(name, make):
    """A case that writes to ``name``, where ``make`` has put something else."""

    def build(folder):
        make(folder / "out" / name)
        return {"out": folder / "out" / name}

    return build


def onto_scan(make):
    def build(folder):
        good = write(folder / "out" / "scan.nii.gz")
        make(good, folder / "out" / "other.nii.gz")
        return {"scan": good, "out": folder / "out" / "other.nii.gz"}

    return build


OUTPUTS = {
    "a folder": (prepared("labels.nii.gz", make_folder), "folder"),
    "in no folder": (output("none/labels.nii.gz"), "does not exist"),
    "below a file": (lambda folder: {"out": write(folder / "out" / "a.nii") / "labels.nii.gz"}, "does not exist"),
    "a full device": (prepared("labels.nii.gz", lambda path: path.symlink_to("/dev/full")), "device"),
    "a pipe": (prepared("labels.nii.gz", make_pipe), "pipe"),
    "a link into no folder": (prepared("labels.nii.gz", lambda path: path.symlink_to("none/a.nii.gz")), "no such file"),
    "a name too long": (output("a" * 250 + ".nii.gz"), "too long"),
    "another suffix": (output("labels.png"), "named like a NIfTI"),
    "the scan": (lambda folder: {"scan": (good := write(folder / "s.nii.gz")), "out": good}, "overwrite"),
    "a link to the scan": (onto_scan(lambda good, other: other.symlink_to(good)), "overwrite"),
    "a hard link to the scan": (onto_scan(lambda good, other: other.hardlink_to(good)), "overwrite"),
    "the model": (lambda folder: {"model": (m := write_threshold_model(folder / "m.nii")), "out": m}, "overwrite"),
    "both in one": (
        lambda folder: {"more": ["--organ-table", str(folder / "out" / "labels.nii.gz")]},
        "give one that ends in .txt",
    ),
    "another patient's scan": (prepared("labels.nii.gz", write), "would replace what may be a scan"),
    "a scan in four dimensions": (
        prepared("labels.nii.gz", lambda path: write(path, np.zeros((3, 3, 3, 2), np.int16))),
        "would replace what may be a scan",
    ),
    "table over scan": (
        lambda folder: {"scan": (good := write(folder / "s.nii.gz")), "more": ["--organ-table", str(good)]},
        "give one that ends in .txt",
    ),
    "table in no folder": (
        lambda folder: {"more": ["--organ-table", str(folder / "none" / "a.json")]},
        "does not exist",
    ),
}

OPTIONS = {
    "no threads": (lambda folder: {"more": ["--threads", "0"]}, "threads"),
    "negative batch": (lambda folder: {"more": ["--batch", "-1"]}, "batch"),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {"scan": SCANS, "model": MODELS, "output": OUTPUTS, "option": OPTIONS}.items()
    for name, case in cases.items()
}


def files(folder):
    """Every path below ``folder`` with its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("build", "why"), CASES.values(), ids=CASES)
def test_bad_input_is_refused(tmp_path, threshold_model, capsys, build, why):
    (tmp_path / "out").mkdir()
    case = {"model": threshold_model, "out": tmp_path / "out" / "labels.nii.gz", "more": []} | build(tmp_path)
    case.setdefault("scan", tmp_path / "good.nii.gz")
    write(tmp_path / "good.nii.gz")
    before = files(tmp_path)
    status = main([*map(str, [case["model"], case["scan"], "-o", case["out"]]), *case["more"]])
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("predict: ")]
    assert status == 2
    assert len(lines) == 1, printed.err
    assert re.fullmatch(r"error: [^:]+: [a-z10\-].*[^.]", lines[0]), lines[0]  # subject: what is wrong; what to do
    assert re.search(why, lines[0]), lines[0]
    assert printed.out == ""
    assert files(tmp_path) == before


def test_the_lie_is_as_small_as_it_should_be():
    assert len(tiny_lie()) < 200
    assert struct.unpack("<i", gzip.decompress(tiny_lie())[:4]) == (348,)


def test_there_are_enough_of_them():
    assert len(SCANS) + len(MODELS) >= 100


# These show only when the model runs: there, a session exists and has to.
AT_RUN = {"fails at run", "another size", "label without an organ"}
# These are seen by looking at the session's own inputs and outputs.
BY_CONTRACT = {
    "wrong K",
    "float input",
    "another input",
    "no labels",
    "another output",
    "one size",
    "card for 3 channels",
}
# A damaged byte may leave a file that only onnxruntime itself refuses.
BY_ONNXRUNTIME = {"damaged"}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - AT_RUN - BY_CONTRACT - BY_ONNXRUNTIME))
def test_a_model_is_refused_before_a_session_is_made(tmp_path, monkeypatch, name):
    def session(*args, **kwargs):
        raise AssertionError("a session was made")

    path = MODELS[name][0](tmp_path)["model"]
    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(InputError):
        Model(path)


MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[2])
from cpu_time import seconds_of, shortest
from smile_runtime.errors import InputError
from smile_runtime.model.exported import Model
from smile_runtime.io.nifti import read_image

def memory(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

def refuse(kind, path):
    try:
        (Model if kind == "model" else read_image)(path)
    except InputError:
        return True
    return False

cases = json.load(open(sys.argv[1]))
for kind, path, _ in (cases[0], cases[-1]):
    refuse(kind, path)  # loads what is loaded once and for all
found = {}
for kind, path, name in cases:
    before = memory("VmRSS")
    refused = refuse(kind, path)
    grown = memory("VmHWM") - before
    found[name] = [refused, shortest(lambda: seconds_of(refuse, kind, path), 0.1), grown]
print(json.dumps(found))
"""


def test_each_is_refused_within_100_ms_and_50_mb(tmp_path):
    """In one process; the peak of memory only grows, so a case is blamed for the peaks of those before it too."""
    cases = []
    for kind, group in (("scan", SCANS), ("model", MODELS)):
        for number, (name, (build, _)) in enumerate(group.items()):
            if kind == "model" and name in AT_RUN:
                continue
            folder = tmp_path / kind / str(number)
            folder.mkdir(parents=True)
            cases.append((kind, str(build(folder)[kind]), f"{kind}: {name}"))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "cases.json"), os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(cases) >= 100
    assert [name for name, (refused, _, _) in found.items() if not refused] == []
    assert {name: seconds for name, (_, seconds, _) in found.items() if seconds > 0.1} == {}
    assert {name: grown for name, (_, _, grown) in found.items() if grown > 50e6} == {}
