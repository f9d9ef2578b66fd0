import json

import nibabel as nib
import numpy as np
import pytest
from nifti_files import random_hu, write
from onnx import TensorProto, helper
from tiny_models import SPACE, hu_input, spacing_labels, threshold_card, write_spacing_model

from smile_runtime.errors import InputError
from smile_runtime.model.exported import Model
from smile_runtime.predict.cli import main
from smile_runtime.predict.predictor import Predictor
from smile_runtime.volume.pixel_size import PixelSpace

UNLIKE = "pixels of 1.5 mm are unlike those of the training, 0.6 to 0.9 mm, brought to 0.8 mm; look at the labels"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_spacing_model(tmp_path_factory.mktemp("pixels") / "spacing.onnx")


def labels_of(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_a_model_gets_the_spacing_of_rows_and_columns(tmp_path, model, order):
    """Whatever the order of the file's axes: 0.7 mm along the rows, 0.85 mm from row to row."""
    affine = np.diag([0.85, 0.7, 2.0, 1.0])[:, [*order, 3]]  # columns run along x, rows along y
    hu = random_hu((6, 7, 5))
    scan = write(tmp_path / "scan.nii.gz", hu, affine)
    Predictor(model, threads=1).predict_file(scan, tmp_path / "labels.nii.gz")
    found = labels_of(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(found, spacing_labels(hu, (0.7, 0.85)))
    assert found.any()
    assert not found.all()


def test_without_a_spacing_the_pixels_are_the_models(model):
    hu = random_hu((2, 1, 6, 5))
    np.testing.assert_array_equal(Model(model).labels(hu), spacing_labels(hu[:, 0], (0.8, 0.8)))
    np.testing.assert_array_equal(Predictor(model).predict(hu[:, 0]), spacing_labels(hu[:, 0], (0.8, 0.8)))


def test_a_scan_unlike_those_of_the_training_is_warned_of(tmp_path, model, capsys):
    scans, out, report = tmp_path / "scans", tmp_path / "out", tmp_path / "run.json"
    scans.mkdir()
    for name, side in (("like", 0.98), ("unlike", 1.5)):  # 0.9 mm and 10% more is 0.99 mm
        write(scans / f"{name}.nii.gz", random_hu((6, 7, 5)), np.diag([side, side, 9.0, 1.0]))
    arguments = [str(model), str(scans), "-o", str(out), "--report", str(report)]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert f"warning: {scans / 'unlike.nii.gz'}: {UNLIKE}" in said
    assert said.count("warning:") == 1
    first = {entry["scan"]: entry["warning"] for entry in json.loads(report.read_text())["files"]}
    assert first[str(scans / "like.nii.gz")] is None
    assert first[str(scans / "unlike.nii.gz")].startswith(UNLIKE)
    assert main([*arguments, "--continue"]) == 0  # what is kept is warned of as before
    assert f"warning: {scans / 'unlike.nii.gz'}: {UNLIKE}" in capsys.readouterr().err


def test_a_batch_holds_as_many_pixels_of_the_network(model, monkeypatch):
    """Slices that the network sees as they are, twice as large in both directions, or half as large."""
    predictor, asked = Predictor(model), []
    monkeypatch.setattr(predictor.model, "labels", lambda hu, spacing: asked.append(len(hu)) or hu[:, 0] * 0)
    for side in (0.8, 1.6, 0.4):
        predictor.predict(np.zeros((16, 256, 256), np.int16), pixel_spacing=(side, side))
    assert asked == [4] * 4 + [1] * 16 + [16]


def test_a_pixel_size_needs_its_input(tmp_path):
    labels = [helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "H", "W"])]
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["hu", "zero"], ["x"], axis=1),
        helper.make_node("Cast", ["x"], ["labels"], to=TensorProto.UINT8),
    ]
    for name, dtype, dims in (
        ("spacing", TensorProto.DOUBLE, [2]),
        ("pixel_spacing", TensorProto.FLOAT, [2]),
        ("pixel_spacing", TensorProto.DOUBLE, [3]),
        ("pixel_spacing", TensorProto.DOUBLE, ["n"]),
        ("pixel_spacing", TensorProto.DOUBLE, [2, 1]),
    ):
        inputs = [hu_input(), helper.make_tensor_value_info(name, dtype, dims)]
        path = write_spacing_model(tmp_path / "m.onnx", inputs=inputs, outputs=labels, nodes=nodes)
        with pytest.raises(InputError, match=r"m\.onnx: has a pixel size and no second input pixel_spacing, float64"):
            Model(path)


def test_a_model_without_a_pixel_size_takes_no_spacing(tmp_path):
    space = PixelSpace(None, 8, (0.6, 0.9), (1.0, 5.0), 0.1)
    path = write_spacing_model(tmp_path / "m.onnx", card=threshold_card(pixels=space))
    with pytest.raises(InputError, match="does not take one int16 input"):
        Model(path)


def test_a_card_with_a_wrong_pixel_size_is_refused(tmp_path):
    card = json.loads(threshold_card(pixels=SPACE).to_json())
    card["pixels"]["pixel_size"] = -1
    path = write_spacing_model(tmp_path / "m.onnx", metadata=[("smile_fast", json.dumps(card))])
    with pytest.raises(InputError, match=r"model card cannot be used, pixels\.pixel_size is -1, .* export it again$"):
        Model(path)
