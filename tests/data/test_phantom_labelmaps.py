import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from smile_fast.data.dataset import RawDataset
from smile_fast.data.phantom import PhantomOptions, make_case, write_cohort
from smile_fast.data.phantom.deformation import LabelMaps
from smile_fast.evaluation.hu_threshold import hu_threshold
from smile_runtime.errors import InputError

VALUES = {"liver": 1, "pancreas": 2, "stomach": 3, "kidney_right": 5, "aorta": 8, "thing": 77}
# z, y, x blocks in slices order, 4 mm voxels: inferior to superior, anterior to posterior, right to left.
BLOCKS = {
    "liver": (slice(8, 34), slice(8, 40), slice(4, 34)),
    "pancreas": (slice(10, 20), slice(22, 28), slice(32, 56)),
    "stomach": (slice(14, 32), slice(8, 20), slice(40, 60)),
    "kidney_right": (slice(2, 12), slice(34, 44), slice(16, 26)),
    "aorta": (slice(0, 36), slice(32, 38), slice(36, 42)),
    "thing": (slice(2, 8), slice(10, 20), slice(40, 60)),
}


def write_map(path, organs=tuple(VALUES), dtype=np.uint8):
    labels = np.zeros((36, 50, 66), dtype)
    for organ in organs:
        labels[BLOCKS[organ]] = VALUES[organ]
    affine = np.diag([-4.0, -4.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), path)


@pytest.fixture
def maps(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / "labels.json").write_text(json.dumps({"labels": VALUES}))
    for name in "ab":
        write_map(folder / f"{name}.nii.gz")
    return folder


def options(folder, **changes):
    return PhantomOptions(**{"train": 2, "test": 1, "size": 48, "slices": 16, "labelmaps": folder, **changes})


def test_label_maps_are_found_whatever_their_endings_and_their_organs_spellings(maps):
    (maps / "a.nii.gz").rename(maps / "a.NII.GZ")
    (maps / "b.nii.gz").rename(maps / "b.Nii")
    (maps / "labels.json").write_text(json.dumps({"labels": {" liver": 1, "Ro\u0308hre": 2}}))
    found = LabelMaps.open(maps)
    assert [file.name for file in found.files] == ["a.NII.GZ", "b.Nii"]
    assert found.values == {"liver": 1, "R\u00f6hre": 2}


def test_dicom_is_named_for_what_it_is(maps):
    for file in maps.glob("*.gz"):
        file.write_bytes(b"\0" * 128 + b"DICM")
        file.rename(file.with_suffix(""))
    (maps / "a.nii").rename(maps / "a.dcm")
    (maps / "b.nii").unlink()
    with pytest.raises(
        InputError, match="is a folder of DICOM files, not NIfTI; convert it with: dcm2niix -z y -o OUT "
    ):
        LabelMaps.open(maps)


def test_label_maps_become_a_cohort(maps, tmp_path):
    write_cohort(tmp_path / "one", options(maps))
    write_cohort(tmp_path / "two", options(maps), workers=2)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(names) == 8
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    assert RawDataset.open(tmp_path / "one").organs == ("liver", "pancreas", "stomach")


def test_the_anatomy_survives_and_every_case_is_deformed_afresh(maps):
    first, second = (make_case(options(maps), 0, index) for index in range(2))
    assert (first[1] != second[1]).any()
    for hu, labels, grid in (first, second):
        assert labels.shape == grid.shape == (16, 48, 48)
        z, y, x = (np.array([np.argwhere(labels == value).mean(axis=0) for value in (1, 2, 3)])).T
        assert x[0] < x[1]
        assert x[0] < x[2]
        assert y[2] < y[1]
        assert z[1] < z[2]
        drawn = np.prod([(part.stop - part.start) * 4.0 for part in BLOCKS["liver"]])
        assert 0.6 < (labels == 1).sum() * np.prod(grid.spacing) / drawn < 1.5
        # A body around it: fat, muscle and bone, air in the corners.
        assert (hu[:, :2, :2] < -900).all()
        assert (hu > 250).any()
        assert ((hu > -130) & (hu < -70)).mean() > 0.02


def test_held_out_cases_come_from_other_patients(maps):
    for name in "cdefgh":
        write_map(maps / f"{name}.nii.gz")
    for count in range(2, 9):
        found = LabelMaps(tuple(sorted(maps.glob("*.nii.gz")))[:count], VALUES)
        train, test = ({found.pick(split, index) for index in range(20)} for split in (0, 1))
        assert train
        assert test
        assert train.isdisjoint(test)
        assert len(train) + len(test) == count
        assert len(train) >= len(test)


def test_a_single_map_serves_both_sides(maps):
    (maps / "b.nii.gz").unlink()
    found = LabelMaps.open(maps)
    assert found.pick(0, 3) == found.pick(1, 5) == maps / "a.nii.gz"


def test_an_organ_that_a_patient_lacks_is_simply_not_there(maps):
    write_map(maps / "a.nii.gz", ("liver", "pancreas"))
    _, labels, _ = make_case(options(maps), 0, 0)
    assert set(np.unique(labels)) == {0, 1, 2}


def test_unknown_structures_are_painted_and_can_be_labelled(maps):
    _, labels, _ = make_case(options(maps, organs=("thing", "liver")), 0, 0)
    assert set(np.unique(labels)) == {0, 1, 2}


def broken_json(folder):
    (folder / "labels.json").write_text("{")


def missing_json(folder):
    (folder / "labels.json").unlink()


def wrong_values(folder):
    (folder / "labels.json").write_text('{"labels": {"liver": 300}}')


def no_maps(folder):
    for path in folder.glob("*.nii.gz"):
        path.unlink()


def empty_map(folder):
    write_map(folder / "a.nii.gz", ())


def foreign_map(folder):
    write_map(folder / "a.nii.gz", ("aorta",))


def cut_short(folder):
    path = folder / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_json, "not valid JSON"),
        (missing_json, "there is no such file"),
        (wrong_values, "does not name the label values"),
        (no_maps, "holds no label map"),
        (empty_map, "no labelled voxel"),
        (foreign_map, "none of the organs"),
        (cut_short, "a.nii.gz"),
    ],
)
def test_bad_label_maps_are_refused(maps, tmp_path, damage, message):
    damage(maps)
    with pytest.raises(InputError, match=message):
        write_cohort(tmp_path / "out", options(maps))
    assert not (tmp_path / "out").exists()


def test_a_worker_reports_a_bad_map_as_well(maps, tmp_path):
    cut_short(maps)
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        write_cohort(tmp_path / "out", options(maps), workers=2)
    assert not (tmp_path / "out").exists()


def test_an_organ_outside_labels_json_is_refused(maps, tmp_path):
    with pytest.raises(InputError, match="unknown organ 'spleen'"):
        write_cohort(tmp_path / "out", options(maps, organs=("spleen",)))


@pytest.mark.real_data
def test_real_anatomy(tmp_path):
    root = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SMILE_FAST_DATA", root)) / "labelmaps_1.5mm"
    if not folder.is_dir():
        pytest.skip(f"no label maps at {folder} (set SMILE_FAST_DATA)")
    write_cohort(tmp_path / "cohort", PhantomOptions(train=6, test=2, size=64, labelmaps=folder))
    dataset = RawDataset.open(tmp_path / "cohort")
    for case in dataset.cases:
        counts = np.bincount(np.asarray(nib.load(case.label).dataobj).ravel(), minlength=4)
        assert (counts[1:] > (1500, 50, 100)).all()
    assert max(hu_threshold(dataset).values()) < 0.5
