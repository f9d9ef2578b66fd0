import nibabel as nib
import numpy as np
import onnxruntime as ort
import pytest
from nifti_files import AFFINE, orientations, random_hu, rotation, write
from tiny_models import neighbour_labels, threshold_card, threshold_labels, threshold_nodes, write_threshold_model
from tolerances import AFFINE_RELATIVE

from smile_runtime.errors import InputError
from smile_runtime.io.nifti import read_image
from smile_runtime.predict.predictor import Predictor

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
    assert volumes == pytest.approx(
        [np.count_nonzero(expected == value) * voxel for value in range(1, 16)], rel=AFFINE_RELATIVE
    )


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
    monkeypatch.setattr(predictor.model, "labels", lambda hu, _: (seen.append(hu.shape[0]), real(hu))[1])
    predictor.predict(np.zeros((3, 512, 512), np.int16))
    predictor.predict(np.zeros((20, 128, 128), np.int16))
    assert seen == [1, 1, 1, 16, 4]


@pytest.mark.parametrize(("organs", "batch"), [(2, 16), (64, 16), (126, 10)])
def test_on_a_gpu_the_batch_follows_the_number_of_organs(tmp_path, monkeypatch, organs, batch):
    card = threshold_card(organs=tuple(f"organ {number}" for number in range(organs)))
    predictor = Predictor(write_threshold_model(tmp_path / "model.onnx", card=card))
    predictor.provider = "cuda"
    seen = []
    monkeypatch.setattr(predictor.model, "labels", lambda hu, _: (seen.append(len(hu)), np.zeros_like(hu[:, 0]))[1])
    predictor.predict(np.zeros((batch + 1, 512, 512), np.int16))
    predictor.predict(np.zeros((2, 3000, 3000), np.int16))  # 9 million pixels: more than 4 GiB with any organs
    assert seen == [batch, batch, 1, 1]  # the last one of a volume is filled up


@pytest.mark.parametrize("asked", [None, 7, 3])
@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Status "
        "Message: \nbfc_arena.cc:376 Failed to allocate memory for requested buffer of size 939524096",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_batch_that_does_not_fit_is_halved(neighbour_model, monkeypatch, asked, message):
    predictor, slices, seen = Predictor(neighbour_model, batch=asked), random_hu((7, 9, 8)), []
    real = ort.InferenceSession.run

    def short(self, outputs, feeds):
        """A session that has memory for two slices."""
        seen.append(len(feeds["hu"]))
        if seen[-1] > 2:
            raise RuntimeError(message)
        return real(self, outputs, feeds)

    monkeypatch.setattr(ort.InferenceSession, "run", short)
    done = []
    labels = predictor.predict(slices, advance=done.append)
    assert np.array_equal(labels, neighbour_labels(slices))
    assert seen == [*([7, 3] if asked != 3 else [3]), *[1] * 7]
    assert done == [(n + 1) / 7 for n in range(7)]


def test_one_slice_that_does_not_fit_is_an_error(neighbour_model, monkeypatch):
    predictor = Predictor(neighbour_model)

    def full(self, outputs, feeds):
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(ort.InferenceSession, "run", full)
    with pytest.raises(InputError, match="needs more memory"):
        predictor.predict(random_hu((7, 9, 8)))


def test_other_failures_are_not_tried_again(neighbour_model, monkeypatch):
    predictor, seen = Predictor(neighbour_model), []

    def broken(self, outputs, feeds):
        seen.append(len(feeds["hu"]))
        raise RuntimeError("the shapes do not fit")

    monkeypatch.setattr(ort.InferenceSession, "run", broken)
    with pytest.raises(InputError, match="the shapes do not fit"):
        predictor.predict(random_hu((7, 9, 8)))
    assert seen == [7]


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


def test_one_predictor_serves_many_scans(tmp_path, threshold_model):
    predictor = Predictor(threshold_model)
    for seed, shape in enumerate([(6, 5, 4), (3, 9, 2), (1, 1, 2)]):
        data = random_hu(shape, seed)
        scan = write(tmp_path / "scan.nii.gz", data)
        prediction = predictor.predict_file(scan, tmp_path / "labels.nii.gz")
        assert np.array_equal(np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj), threshold_labels(data))
        assert prediction.path == tmp_path / "labels.nii.gz"
        voxel = float(np.prod(np.diag(AFFINE))) / 1000
        metal = np.count_nonzero(data > 300) * voxel
        assert prediction.volumes_ml["metal"] == pytest.approx(metal, rel=AFFINE_RELATIVE)


@pytest.mark.parametrize(("unit", "size"), [("unknown", 1), ("mm", 1), ("meter", 1e-3), ("micron", 1e3)])
def test_volumes_are_millilitres_whatever_the_unit_of_length(tmp_path, threshold_model, unit, size):
    data = random_hu((6, 5, 4))
    image = nib.Nifti1Image(data, np.diag([*(size * np.diag(AFFINE)[:3]), 1]))
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(read_image(tmp_path / "scan.nii.gz").affine, AFFINE, rtol=AFFINE_RELATIVE)
    prediction = Predictor(threshold_model).predict_file(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz")
    voxel = float(np.prod(np.diag(AFFINE))) / 1000
    assert prediction.volumes_ml["metal"] == pytest.approx(np.count_nonzero(data > 300) * voxel, rel=AFFINE_RELATIVE)
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert labels.header["xyzt_units"] == image.header["xyzt_units"]
    assert np.array_equal(labels.affine, nib.load(tmp_path / "scan.nii.gz").affine)


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
