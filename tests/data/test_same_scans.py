"""The same scan twice is found by its voxels."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data.same_scans import leak_warning, repeat_warning
from smile_fast.data.store import Store
from tests.cohorts import AFFINE, annotate, make_cohort, write_nifti


@pytest.fixture
def cohort(tmp_path):
    path = make_cohort(tmp_path / "cohort", train=3, test=2)
    annotate(path)
    return path


def image(cohort, case):
    return cohort / ("imagesTr" if case < "case_03" else "imagesTs") / f"{case}_0000.nii.gz"


def copied(source, target):
    target.write_bytes(source.read_bytes())


def compressed_otherwise(source, target):
    target.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), compresslevel=1, mtime=7))


def turned(source, target):
    """The same voxels in another order of axes, with the header that says so."""
    read = nib.load(source)
    nib.save(read.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), target)


def of_another_type(source, target):
    data = np.asarray(nib.load(source).dataobj)
    other = nib.Nifti1Image(data.astype(np.float32), AFFINE)
    other.header["descrip"] = b"another header"
    nib.save(other, target)


SAME = [copied, compressed_otherwise, turned, of_another_type]


def prepared(cohort, tmp_path):
    assert main(["prepare", str(cohort), str(tmp_path / "store"), "--workers", "1"]) == 0
    return Store.open(tmp_path / "store")


def warnings(err):
    return [line.removeprefix("warning: ") for line in err.splitlines() if "the same scan" in line]


@pytest.mark.parametrize("way", SAME)
def test_a_scan_in_training_and_test_is_named_by_both_names(cohort, tmp_path, capsys, way):
    way(image(cohort, "case_01"), image(cohort, "case_04"))
    if way is turned:  # the label map lies on the image's grid
        turned(cohort / "labelsTs" / "case_04.nii.gz", cohort / "labelsTs" / "case_04.nii.gz")
    store = prepared(cohort, tmp_path)
    assert warnings(capsys.readouterr().err) == [
        f"{store.path}: the same scan is in training and among the cases to score (case_01 and case_04), whose scores "
        "will be too good; take one of them out of the dataset"
    ]
    assert leak_warning(store, ["case_00", "case_02"], ["case_03", "case_04"]) is None
    assert "case_01 and case_04" in leak_warning(store, ["case_01"], ["case_04"])


@pytest.mark.parametrize(("one", "other"), [("case_00", "case_02"), ("case_03", "case_04")])
def test_a_scan_under_two_names_of_a_split_is_named(cohort, tmp_path, capsys, one, other):
    copied(image(cohort, one), image(cohort, other))
    store = prepared(cohort, tmp_path)
    assert warnings(capsys.readouterr().err) == [
        f"{store.path}: the same scan stands under several names ({one} and {other}) and counts as often; keep one of "
        "them, with all that was drawn in any"
    ]


def test_kept_cases_are_compared_too(cohort, tmp_path, capsys):
    copied(image(cohort, "case_00"), image(cohort, "case_03"))
    prepared(cohort, tmp_path)
    first = warnings(capsys.readouterr().err)
    prepared(cohort, tmp_path)
    assert warnings(capsys.readouterr().err) == first != []


def test_scans_that_differ_in_one_voxel_are_two(cohort, tmp_path, capsys):
    data = np.asarray(nib.load(image(cohort, "case_00")).dataobj).copy()
    data[0, 0, 0] += 1
    write_nifti(image(cohort, "case_03"), data)
    store = prepared(cohort, tmp_path)
    assert warnings(capsys.readouterr().err) == []
    assert repeat_warning(store, store.cases) is None
