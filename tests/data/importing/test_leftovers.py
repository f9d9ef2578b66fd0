"""What an unfinished call has left may be links to its sources: no later call writes through them."""

import os

import nibabel as nib
import numpy as np
import pytest

from smile_fast.cli.main import main
from tests.cohorts import make_cohort, other_image, tree, write_nifti


@pytest.fixture
def broken(tmp_path):
    """Three cases, of which the last scan is broken: an import keeps the other two for the next call."""
    path = make_cohort(tmp_path / "source", train=3)
    (path / "imagesTr" / "case_02_0000.nii.gz").write_bytes(b"\x1f\x8b nothing")
    return path


def run(*arguments):
    return main(["import", *map(str, arguments), "--all-annotated", "--workers", "1"])


def link_labels(work, source, name):
    """The label maps of a leftover as links of a kind, too, whoever has made them."""
    for label in (work / "dataset" / "labelsTr").iterdir():
        label.unlink()
        getattr(os, name)(source / "labelsTr" / label.name, label)


@pytest.mark.parametrize(("link", "make"), [("symbolic", "symlink"), ("hard", "link")])
@pytest.mark.parametrize("records", [True, False], ids=["recorded", "killed before the record"])
def test_another_plan_over_links_changes_no_source(broken, tmp_path, link, make, records):
    table = tmp_path / "map.csv"
    table.write_text("name,organ\nspleen,\nliver,organ\npancreas,organ\n")
    before = tree(broken)
    work, out = tmp_path / ".out.unfinished", tmp_path / "out"
    assert run(broken, out, "--link", link) == 2
    images = list((work / "dataset" / "imagesTr").iterdir())
    assert len(images) == 2
    assert all(image.is_symlink() if link == "symbolic" else image.stat().st_nlink == 2 for image in images)
    link_labels(work, broken, make)
    if not records:
        for record in (work / "cases").iterdir():
            record.unlink()
    assert run(broken, out, "--link", link, "--map", table, "--without", "case_02") == 0
    assert tree(broken) == before
    labels = out / "labelsTr" / "case_00.nii.gz"
    assert labels.stat().st_nlink == 1
    assert np.unique(np.asarray(nib.load(labels).dataobj)).tolist() == [0, 1]


@pytest.mark.parametrize(("link", "make"), [("symbolic", "symlink"), ("hard", "link")])
def test_another_source_over_links_changes_no_source(broken, tmp_path, link, make):
    other = tmp_path / "other"
    make_cohort(other, train=2)
    for file in other.rglob("*.nii.gz"):  # written, and not placed: they have to be compressed
        voxels = np.asarray(nib.load(file).dataobj) if "labels" in str(file) else other_image()
        write_nifti(file.with_suffix(""), voxels)
        file.unlink()
    before = tree(broken), tree(other)
    work, out = tmp_path / ".out.unfinished", tmp_path / "out"
    assert run(broken, out, "--link", link) == 2
    link_labels(work, broken, make)
    assert run(other, out, "--link", link) == 0
    assert (tree(broken), tree(other)) == before
    image = out / "imagesTr" / "case_00_0000.nii.gz"
    assert not image.is_symlink()
    np.testing.assert_array_equal(nib.load(image).dataobj, other_image())


def test_label_maps_are_no_links_to_a_source(broken, tmp_path):
    assert run(broken, tmp_path / "out", "--link", "symbolic", "--without", "case_02") == 0
    assert (tmp_path / "out" / "imagesTr" / "case_00_0000.nii.gz").is_symlink()
    label = tmp_path / "out" / "labelsTr" / "case_00.nii.gz"
    assert not label.is_symlink()
    assert not label.samefile(broken / "labelsTr" / label.name)
