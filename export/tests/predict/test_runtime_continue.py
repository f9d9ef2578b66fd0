"""What ``--continue`` believes of a label map that lies there already."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from nifti_files import random_hu, write

from smile_runtime.io.files import sha256
from smile_runtime.io.nifti import read_labels, read_note, write_labels
from smile_runtime.predict.cli import main

SHAPE = (8, 9, 3)


@pytest.fixture
def case(tmp_path, threshold_model):
    """A folder of one scan, segmented: how to go on with it, and its label map."""
    (tmp_path / "scans").mkdir()
    write(tmp_path / "scans" / "c.nii.gz", random_hu(SHAPE))
    arguments = [str(threshold_model), str(tmp_path / "scans"), "-o", str(tmp_path / "out")]
    arguments += ["--continue", "--report", str(tmp_path / "run.json"), "--volumes", str(tmp_path / "v.json")]

    def status():
        """Of the one file, after going on."""
        assert main(arguments) == 0
        return json.loads((tmp_path / "run.json").read_text())["files"][0]["status"]

    assert status() == "written"
    return status, tmp_path / "out" / "c.nii.gz"


def note_again(labels, change, voxels=None):
    """Write a label map anew with another note, and perhaps other voxels."""
    facts = json.loads(read_note(labels)[1])
    old = read_labels(labels)
    data = old.data if voxels is None else voxels
    write_labels(labels, np.array(data), old.affine, note=change(facts))


def test_a_label_map_with_an_honest_note_is_kept(case, tmp_path):
    status, labels = case
    facts = json.loads(read_note(labels)[1])
    assert facts["scan"] == {"sha256": sha256(tmp_path / "scans" / "c.nii.gz"), "shape": list(SHAPE)}
    note_again(labels, json.dumps)
    assert status() == "already complete"


def test_a_label_map_of_another_scan_is_not_kept(case, tmp_path):
    """Of another shape, and older than the label map."""
    status, labels = case
    write(tmp_path / "scans" / "c.nii.gz", random_hu((20, 9, 5), 7))
    shutil.copystat(labels, tmp_path / "scans" / "c.nii.gz")
    assert status() == "written"
    assert nib.load(labels).shape == (20, 9, 5)


def test_a_label_map_that_another_program_has_cropped_is_not_kept(case):
    status, labels = case
    note_again(labels, json.dumps, np.zeros((4, 9, 3), np.uint8))
    assert status() == "written"
    assert nib.load(labels).shape == SHAPE


def inside(*path, value):
    """A change of one entry of a note."""

    def change(facts):
        entry = facts
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = value
        return json.dumps(facts)

    return change


NOTES = {
    "no JSON": lambda facts: "kept",
    "a list": lambda facts: "[]",
    "nested without end": lambda facts: "[" * 100_000,
    "no scan": inside("scan", value=None),
    "another scan": inside("scan", "sha256", value="0" * 64),
    "a volume beyond all floats": inside("volumes_ml", "bone", value=10**400),
    "an infinite volume": lambda facts: inside("volumes_ml", "bone", value=-7)(facts).replace("-7", "1e999"),
    "a volume of text": inside("volumes_ml", "bone", value="nan"),
    "a volume that is no number": inside("volumes_ml", "bone", value=float("nan")),
    "an infinite box": inside("box", "of", value=float("inf")),
    "a box of text": inside("box", "rows", value="\ud800"),
    "a box of a number": inside("box", value=3),
}


@pytest.mark.parametrize("change", NOTES.values(), ids=NOTES)
def test_a_label_map_with_a_spoiled_note_is_not_kept(case, change):
    status, labels = case
    note_again(labels, change)
    assert status() == "written"
    assert status() == "already complete"
