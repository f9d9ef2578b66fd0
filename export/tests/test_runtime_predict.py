import json

import nibabel as nib
import numpy as np
import pytest
from nifti_files import AFFINE, orientations, random_hu, rotation, write
from tiny_models import neighbour_labels, threshold_labels, threshold_nodes, write_threshold_model

from smile_runtime.errors import InputError
from smile_runtime.nifti import read_image
from smile_runtime.predict import Predictor

SHAPE = (6, 5, 4)  # RAS [X, Y, Z]


@pytest.fixture(scope="module")
def neighbours(neighbour_model):
    return Predictor(neighbour_model, threads=1)


def save_reoriented(path, orientation, turn, scaled):
    """One and the same patient, stored in some axis order; returns its slices in slices order."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = (-100, 20, 7)
    data = random_hu(SHAPE)
    image = nib.Nifti1Image(data, affine).as_reoriented(orientation)
    if scaled:  # HU = stored * 0.5 - 1024
        stored = ((np.asarray(image.dataobj).astype(np.float64) + 1024) / 0.5).astype(np.int16)
        write(path, stored, image.affine, scl_slope=0.5, scl_inter=-1024)
    else:
        nib.save(image, path)
    return data[::-1, ::-1].T


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("turn", [np.eye(3), rotation(11, -7, 17)], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", list(orientations()), ids=str)
def test_every_orientation_comes_out_on_its_own_grid(tmp_path, neighbours, orientation, turn, scaled):
    """The model's answer depends on what lies right of, behind and above a voxel, so no axis can be confused."""
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    slices = save_reoriented(scan, orientation, turn, scaled)
    prediction = neighbours.predict_file(scan, out)

    before, after = nib.load(scan), nib.load(out)
    assert after.shape == before.shape == prediction.shape
    assert np.array_equal(after.affine, before.affine)
    assert nib.aff2axcodes(after.affine) == nib.aff2axcodes(before.affine)
    assert after.get_data_dtype() == np.uint8

    to_lps = nib.orientations.ornt_transform(
        nib.io_orientation(after.affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
    )
    labels = np.asarray(after.as_reoriented(to_lps).dataobj).T  # nibabel's way, not ours
    expected = neighbour_labels(slices)
    assert np.array_equal(labels, expected)
    voxel = 0.7 * 0.9 * 2.5 / 1000  # ml
    volumes = [prediction.volumes_ml[f"organ {value}"] for value in range(1, 16)]
    assert volumes == pytest.approx([np.count_nonzero(expected == value) * voxel for value in range(1, 16)], rel=1e-6)


def test_the_tiny_model_tells_every_orientation_apart():
    """A guard of the test above: on the volume used there, no other axis order gives the same answer."""
    volume = random_hu(SHAPE)
    answers = set()
    for orientation in orientations():
        labels = neighbour_labels(nib.orientations.apply_orientation(volume, orientation))
        answers.add(nib.orientations.apply_orientation(labels, _inverse(orientation)).tobytes())
    assert len(answers) == 48


def _inverse(orientation):
    axes = np.argsort(orientation[:, 0])
    return np.stack([axes, orientation[axes, 1]], axis=1)


@pytest.mark.parametrize("batch", [None, 1, 2, 7, 100])
def test_batches_change_nothing(neighbour_model, batch):
    slices = random_hu((7, 9, 8))
    labels = Predictor(neighbour_model, batch=batch).predict(slices)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, neighbour_labels(slices))


def test_the_batch_follows_the_size_of_a_slice(threshold_model, monkeypatch):
    predictor = Predictor(threshold_model)
    seen = []
    real = predictor.model.labels
    monkeypatch.setattr(predictor.model, "labels", lambda hu: (seen.append(hu.shape[0]), real(hu))[1])
    predictor.predict(np.zeros((3, 512, 512), np.int16))
    predictor.predict(np.zeros((20, 128, 128), np.int16))
    assert seen == [1, 1, 1, 16, 4]


def test_no_slices_give_no_labels(threshold_model):
    assert Predictor(threshold_model).predict(np.zeros((0, 4, 4), np.int16)).shape == (0, 4, 4)


@pytest.mark.parametrize("slices", [np.zeros((2, 2, 2)), np.zeros((2, 2), np.int16)])
def test_wrong_slices_are_refused(threshold_model, slices):
    with pytest.raises(ValueError, match="int16"):
        Predictor(threshold_model).predict(slices)


def test_layout_does_not_matter(neighbour_model):
    slices = random_hu((4, 5, 6))
    expected = neighbour_labels(slices)
    assert np.array_equal(Predictor(neighbour_model).predict(np.asfortranarray(slices)), expected)


def test_the_organ_table_fits_into_a_dataset_json(tmp_path, threshold_model):
    scan = write(tmp_path / "scan.nii.gz")
    Predictor(threshold_model).predict_file(scan, tmp_path / "out.nii", organs_json=tmp_path / "organs.json")
    assert json.loads((tmp_path / "organs.json").read_text()) == {"labels": {"background": 0, "bone": 1, "metal": 2}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["organs.json", "out.nii", "scan.nii.gz"]


def test_one_predictor_serves_many_scans(tmp_path, threshold_model):
    predictor = Predictor(threshold_model)
    for seed, shape in enumerate([(6, 5, 4), (3, 9, 2), (1, 1, 1)]):
        data = random_hu(shape, seed)
        scan = write(tmp_path / "scan.nii.gz", data)
        prediction = predictor.predict_file(scan, tmp_path / "labels.nii.gz")
        assert np.array_equal(np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj), threshold_labels(data))
        assert prediction.path == tmp_path / "labels.nii.gz"
        voxel = float(np.prod(np.diag(AFFINE))) / 1000
        assert prediction.volumes_ml["metal"] == pytest.approx(np.count_nonzero(data > 300) * voxel)


def test_label_values_without_an_organ_are_not_written(tmp_path):
    model = write_threshold_model(tmp_path / "m.onnx", nodes=threshold_nodes(values=(1, 2)))
    scan = write(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match="contradicts its model card"):
        Predictor(model).predict_file(scan, tmp_path / "labels.nii.gz")
    assert not (tmp_path / "labels.nii.gz").exists()


@pytest.mark.real_data
@pytest.mark.parametrize("folder", ["ct_thorax_512", "ct_spleen_512", "ct_abdomen_3mm"])
def test_real_scans(tmp_path, real_data, threshold_model, folder):
    scan, out = real_data / folder / "ct.nii.gz", tmp_path / "labels.nii.gz"
    prediction = Predictor(threshold_model).predict_file(scan, out)
    before, after = nib.load(scan), nib.load(out)
    assert after.shape == before.shape
    assert np.array_equal(after.affine, before.affine)
    assert (after.header["sform_code"], after.header["qform_code"]) == (
        before.header["sform_code"],
        before.header["qform_code"],
    )
    assert np.array_equal(np.asarray(after.dataobj), threshold_labels(read_image(scan).data))
    assert 100 < prediction.volumes_ml["bone"] < 20_000  # ml: somebody's skeleton and contrast, not noise
