"""Real CT from three sources that each drew other organs: the cohort that is built of them, and the whole job on it."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from smile_fast.cli.main import main
from smile_fast.data.annotations import read_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.importing.sources import read_sources_table
from smile_fast.demo.real import run_real_demo, same_geometry, write_sources
from smile_fast.supervision import State
from smile_runtime.errors import InputError
from smile_runtime.volume.preprocessing import to_slices

pytestmark = pytest.mark.real_data

ORGANS = ("liver", "pancreas", "stomach", "spleen", "kidney_right", "kidney_left", "gallbladder")
DRAWN = {"abdomen": set(ORGANS), "spleen": {"spleen"}, "pancreas": {"pancreas"}}


@pytest.fixture(scope="module")
def cohort(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    sources = write_sources(real_data, folder / "sources")
    assert main(["merge", *map(str, sources), str(folder / "cohort"), "--all-annotated", "*"]) == 0
    return folder / "cohort"


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def slices(cohort, case):
    """HU and labels [D, H, W]: from inferior to superior, anterior to posterior, right to left."""
    hu, affine = load(cohort / "imagesTr" / f"{case}_0000.nii.gz")
    labels, _ = load(cohort / "labelsTr" / f"{case}.nii.gz")
    return to_slices(hu, affine)[0], to_slices(labels, affine)[0]


def test_it_is_a_dataset_with_declarations(cohort):
    dataset = RawDataset.open(cohort)
    assert len(dataset.organs) == 7
    assert set(dataset.organs) == set(ORGANS)
    cases = [case.name for case in dataset.cases]
    assert sorted(cases) == sorted(DRAWN)
    states = read_annotations(cohort / "annotations.csv", cases, dataset.organs)
    for case, drawn in DRAWN.items():
        assert {organ for organ, state in states[case].items() if state is State.ANNOTATED} == drawn
        assert {state for organ, state in states[case].items() if organ not in drawn} <= {State.MISSING}


def test_images_are_those_of_the_sources(cohort, real_data):
    for case, folder in (("abdomen", "ct_abdomen_3mm"), ("spleen", "ct_spleen_512")):
        hu, affine = load(cohort / "imagesTr" / f"{case}_0000.nii.gz")
        source, source_affine = load(real_data / folder / "ct.nii.gz")
        np.testing.assert_array_equal(hu, source)
        np.testing.assert_allclose(nib.affines.voxel_sizes(affine), nib.affines.voxel_sizes(source_affine))
        if case == "abdomen":
            np.testing.assert_array_equal(affine, source_affine)
    hu, _ = load(cohort / "imagesTr" / "pancreas_0000.nii.gz")
    with np.load(real_data / "slices_pancreas_hu" / "slices.npz") as source:
        np.testing.assert_array_equal(hu, source["hu"].transpose(2, 1, 0))
    for case in DRAWN:
        image, label = (cohort / folder / name for folder, name in _files(case))
        assert same_geometry(image, label)


def _files(case):
    return ("imagesTr", f"{case}_0000.nii.gz"), ("labelsTr", f"{case}.nii.gz")


def test_every_organ_kept_its_voxels_and_its_name(cohort, real_data):
    values = {organ: value for value, organ in enumerate(RawDataset.open(cohort).organs, start=1)}
    sources = json.loads((real_data / "ct_abdomen_3mm" / "labels.json").read_text())["labels"]
    truth, _ = load(real_data / "ct_abdomen_3mm" / "labels.nii.gz")
    labels, _ = load(cohort / "labelsTr" / "abdomen.nii.gz")
    assert set(sources) == set(ORGANS)
    for organ, value in sources.items():
        np.testing.assert_array_equal(labels == values[organ], truth == value)
        assert (labels == values[organ]).any()
    spleen, _ = load(real_data / "ct_spleen_512" / "labels.nii.gz")
    np.testing.assert_array_equal(load(cohort / "labelsTr" / "spleen.nii.gz")[0] == values["spleen"], spleen > 0)
    with np.load(real_data / "slices_pancreas_hu" / "slices.npz") as source:
        pancreas = source["pancreas"].transpose(2, 1, 0)
    np.testing.assert_array_equal(load(cohort / "labelsTr" / "pancreas.nii.gz")[0] == values["pancreas"], pancreas)
    for case, organs in DRAWN.items():
        found = set(np.unique(load(cohort / "labelsTr" / f"{case}.nii.gz")[0])) - {0}
        assert found == {values[organ] for organ in organs}


@pytest.mark.parametrize("case", DRAWN)
def test_bodies_lie_on_their_backs(cohort, case):
    """The spine is behind the middle of the body: rows run from anterior to posterior in every source."""
    hu, _ = slices(cohort, case)
    body, bone = hu > -300, hu > 300
    assert np.nonzero(bone)[1].mean() > np.nonzero(body)[1].mean() + 0.05 * hu.shape[1]


@pytest.mark.parametrize("case", ["abdomen", "spleen"])
def test_organs_are_on_their_side(cohort, case):
    """Columns run from the patient's right to left: the spleen comes late, the liver early."""
    hu, labels = slices(cohort, case)
    values = {organ: value for value, organ in enumerate(RawDataset.open(cohort).organs, start=1)}
    middle, width = np.nonzero(hu > -300)[2].mean(), hu.shape[2]
    places = {organ: np.nonzero(labels == values[organ])[2] for organ in DRAWN[case]}
    assert places["spleen"].mean() > middle + 0.1 * width
    if case == "abdomen":
        assert places["liver"].mean() < middle - 0.05 * width
        assert places["kidney_right"].mean() < middle < places["kidney_left"].mean()


@pytest.mark.parametrize("missing", ["ct_abdomen_3mm/labels.json", "ct_spleen_512/labels.nii.gz", "slices_pancreas_hu"])
def test_a_source_that_is_not_there_is_named(real_data, tmp_path, missing):
    data = tmp_path / "data"
    for folder in ("ct_abdomen_3mm", "ct_spleen_512", "slices_pancreas_hu"):
        (data / folder).mkdir(parents=True)
        for file in (real_data / folder).iterdir():
            (data / folder / file.name).symlink_to(file)
    target = data / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(InputError, match="there is no such file; put it there"):
        write_sources(data, tmp_path / "sources")
    assert not (tmp_path / "sources").exists()


def test_the_merged_cohort_says_where_its_cases_come_from(cohort):
    found = read_sources_table(cohort / "sources.csv")
    assert {name: (row.dataset, row.original) for name, row in found.items()} == {name: (name, name) for name in DRAWN}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_merged_cohort_trains_and_is_scored_where_it_was_annotated(cohort, tmp_path, capsys):
    """What the README shows: merge, audit, prepare, train, evaluate; a moment of training, not a good network."""
    store, run = tmp_path / "store", tmp_path / "run"
    assert main(["audit", str(cohort)]) == 0
    assert main(["prepare", str(cohort), str(store), "--workers", "1"]) == 0
    tiny = "--method smiler --backbone resnet18 --width 8 --pixel-size 3 --crop-size 64 --batch-size 4 --rates 1 2 3"
    assert main(["train", str(store), str(run), *tiny.split(), "--epochs", "1", "--rounds", "1"]) == 0
    assert main(["evaluate", str(run), "--split", "train", "--workers", "1"]) == 0
    pairs = json.loads((run / "evaluation-train.json").read_text())["pairs"]
    scored = {(pair["case"], pair["organ"]) for pair in pairs if pair["dice"] is not None}
    assert scored == {(case, organ) for case, organs in DRAWN.items() for organ in organs}


@pytest.mark.slow
@pytest.mark.usefixtures("fair_share")
def test_the_whole_job_on_real_data(real_data, tmp_path, capfd):
    """Audit, prepare, train, export, and segment all four volumes without torch, each on its own grid."""
    out = tmp_path / "demo"
    assert run_real_demo(out, real_data) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dice_abdomen"]["liver"] >= 0.85
    assert summary["dice_abdomen"]["spleen"] >= 0.85
    assert summary["same_geometry"] == dict.fromkeys([*DRAWN, "thorax"], True)
    assert set(summary["dice_abdomen"]) == set(RawDataset.open(out / "cohort").organs)
    assert summary["seconds"]["total"] > summary["seconds"]["train"] > 0
    scans = {case: out / "cohort" / "imagesTr" / f"{case}_0000.nii.gz" for case in DRAWN}
    scans["thorax"] = real_data / "ct_thorax_512" / "ct.nii.gz"
    for name, scan in scans.items():  # looked at here, not only by the demo itself
        image, prediction = nib.load(scan), nib.load(out / "predictions" / f"{name}.nii.gz")
        assert prediction.shape == image.shape
        np.testing.assert_array_equal(prediction.affine, image.affine)
        assert nib.aff2axcodes(prediction.affine) == nib.aff2axcodes(image.affine)
        assert prediction.get_data_dtype() == np.uint8
    found = set(np.unique(np.asarray(nib.load(out / "predictions" / "abdomen.nii.gz").dataobj)))
    assert len(found) >= 5  # background, liver, spleen and at least two of the smaller organs
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    assert "geometry kept: abdomen yes" in capfd.readouterr().out
