"""Scans that are not in Hounsfield units: refused where that is certain, a warning where it is likely."""

import json

import numpy as np
import pytest
from nifti_files import random_hu, write

from smile_runtime.io.nifti import read_labels
from smile_runtime.predict.cli import main

SHAPE = (8, 9, 3)
SENTENCE = "no voxel lies below -200 HU"


OTHERS = {
    "label map": (np.arange(216).reshape(SHAPE).astype(np.uint8) % 15, "between 0 and 14"),
    "grey values": (np.arange(216).reshape(SHAPE).astype(np.uint8) + 40, "between 40 and 255"),
    "HU / 1000": ((random_hu(SHAPE) / 1000).astype(np.float32), "between -1 and 1"),
    "zeros": (np.zeros(SHAPE, np.int16), "all its voxels are 0 HU"),
    "air alone": (np.full(SHAPE, -1000, np.int16), "all its voxels are -1000 HU"),
}


@pytest.mark.parametrize(("data", "why"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_ct_scan_is_refused(tmp_path, threshold_model, capsys, data, why):
    scan = write(tmp_path / "scan.nii.gz", data)
    assert main([str(threshold_model), str(scan), "-o", str(tmp_path / "labels.nii.gz")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {scan}: ")
    assert why in errors[0]
    assert not (tmp_path / "labels.nii.gz").exists()


def test_in_a_folder_the_rest_goes_on(tmp_path, threshold_model):
    (tmp_path / "scans").mkdir()
    write(tmp_path / "scans" / "a.nii.gz", OTHERS["label map"][0])
    write(tmp_path / "scans" / "b.nii.gz", random_hu(SHAPE))
    assert main([str(threshold_model), str(tmp_path / "scans"), "-o", str(tmp_path / "out")]) == 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["b.nii.gz"]


@pytest.mark.parametrize(("lowest", "doubted"), [(-201, False), (-200, True), (-6, True)])
def test_soft_tissue_alone_is_a_ct_scan_but_is_doubted(tmp_path, threshold_model, capsys, lowest, doubted):
    hu = np.full(SHAPE, 40, np.int16)
    hu[0, 0, 0] = lowest
    scan = write(tmp_path / "scan.nii.gz", hu)
    assert main([str(threshold_model), str(scan), "-o", str(tmp_path / "labels.nii.gz")]) == 0
    assert (SENTENCE in capsys.readouterr().err) == doubted
    assert not read_labels(tmp_path / "labels.nii.gz").data.any()


def test_a_shifted_scale_is_doubted_also_of_a_label_map_that_is_kept(tmp_path, threshold_model, capsys):
    (tmp_path / "scans").mkdir()
    scan = write(tmp_path / "scans" / "a.nii.gz", (random_hu(SHAPE) + 1024).astype(np.uint16))
    report = tmp_path / "run.json"
    arguments = [str(threshold_model), str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "--report", str(report)]
    for status in ("written", "already complete"):
        assert main([*arguments, "--continue"]) == 0
        assert f"warning: {scan}: {SENTENCE}" in capsys.readouterr().err
        (file,) = json.loads(report.read_text())["files"]
        assert (file["status"], file["warning"][: len(SENTENCE)]) == (status, SENTENCE)
        assert file["range_hu"] == [int(random_hu(SHAPE).min()) + 1024, int(random_hu(SHAPE).max()) + 1024]
