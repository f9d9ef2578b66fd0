"""A network with a pixel size as a file: slices of any pixels in, labels on the grid of those slices out."""

import numpy as np
import pytest
import torch

from smile_fast.exporter.certificate import REQUIREMENTS
from smile_fast.exporter.graph import fold_batchnorm, to_onnx, without_probabilities
from smile_fast.exporter.onnx_file import serialize
from smile_fast.exporter.precision import Calibration, half_network, quantize
from smile_fast.models.segmenter import resample_slices
from smile_runtime.errors import InputError
from smile_runtime.model.exported import Model, ModelCard
from smile_runtime.volume.pixel_size import PixelSpace
from tests.exports import tiny_network
from tests.runs import ORGANS, ct
from tests.tolerances import PRECISION_PROBABILITY, STORED_PROBABILITY

HU = ct(3)[:, None]  # [6, 1, 40, 48]
PIXELS = [(0.8, 0.8), (0.4, 0.4), (0.6, 0.6), (1.0, 1.1), (1.2, 1.2), (1.6, 1.6), (0.09, 0.09), (9.0, 9.0)]
SPACE = PixelSpace(0.8, 8, (0.8, 0.8), (4.0, 4.0), 0.15)


@pytest.fixture(scope="module", params=[("sigmoid", "fp32", "uint8"), ("softmax", "fp16", "float32")], ids=str)
def exported(request, tmp_path_factory):
    """A network, its file with and without probabilities, and their dtype."""
    head, precision, dtype = request.param
    network = tiny_network(head, pixel_mm=0.8)
    folded = fold_batchnorm(network)
    proto = to_onnx(half_network(folded) if precision == "fp16" else folded, probabilities=dtype)
    folder = tmp_path_factory.mktemp("any_pixels")
    return network, *(load(each, head, precision, folder) for each in (proto, without_probabilities(proto))), dtype


def load(proto, head, precision, folder):
    path = folder / f"{len(proto.graph.output)}-{precision}.onnx"
    path.write_bytes(serialize(proto, ModelCard(ORGANS, 1, (-160.0, 240.0), head, precision=precision, pixels=SPACE)))
    return Model(path)


@pytest.mark.parametrize("pixels", PIXELS)
def test_a_file_computes_what_the_network_computes(exported, pixels):
    network, file, plain, dtype = exported
    stride = network.config.scan_stride((4.0, *pixels))
    with torch.inference_mode():
        logits = network(resample_slices(torch.from_numpy(HU), stride, 8))
        labels = network.label_map(logits, (40, 48), stride).numpy()
        probabilities = network.probabilities(logits, (40, 48), stride).numpy()
    precision = file.card.precision
    assert (file.labels(HU, pixels) == labels).mean() >= REQUIREMENTS[precision].share
    np.testing.assert_array_equal(plain.labels(HU, pixels), file.labels(HU, pixels))
    found = file.probabilities(HU, pixels).astype(np.float32) / (255 if dtype == "uint8" else 1)
    tolerance = PRECISION_PROBABILITY[precision] + STORED_PROBABILITY[dtype]["atol"]
    np.testing.assert_allclose(found, probabilities, rtol=0, atol=tolerance)


def test_pixels_of_another_size_are_another_scan(exported):
    _, file, plain, _ = exported
    assert not np.array_equal(plain.labels(HU, (0.4, 0.4)), plain.labels(HU, (0.8, 0.8)))
    np.testing.assert_array_equal(plain.labels(HU), plain.labels(HU, (0.8, 0.8)))  # the model's own are the default
    np.testing.assert_array_equal(file.probabilities(HU), file.probabilities(HU, (0.8, 0.8)))


def test_int8_keeps_resampling_in_float32(tmp_path):
    network = tiny_network("sigmoid", pixel_mm=0.8)
    exact = to_onnx(fold_batchnorm(network))
    proto = quantize(exact, Calibration(["a"], [ct()[:, None]], [(0.5, 0.5)]))
    kinds = [node.op_type for node in proto.graph.node]
    front, back = (number for number, kind in enumerate(kinds) if kind == "Resize")
    quantized = [number for number, kind in enumerate(kinds) if kind == "QuantizeLinear"]
    assert front < min(quantized) < max(quantized) < back
    one, other = load(exact, "sigmoid", "fp32", tmp_path), load(proto, "sigmoid", "int8", tmp_path)
    same = one.labels(HU, (0.5, 0.5)) == other.labels(HU, (0.5, 0.5))
    assert same.mean() >= REQUIREMENTS["int8"].share


def test_a_card_and_a_graph_that_disagree_are_refused(tmp_path):
    native = to_onnx(fold_batchnorm(tiny_network("sigmoid")))
    with pytest.raises(InputError, match=r"has a pixel size and no second input pixel_spacing, float64 .* export it"):
        load(native, "sigmoid", "fp32", tmp_path)
    proto = to_onnx(fold_batchnorm(tiny_network("sigmoid", pixel_mm=0.8)))
    path = tmp_path / "none.onnx"
    path.write_bytes(serialize(proto, ModelCard(ORGANS, 1, (-160.0, 240.0), "sigmoid")))
    with pytest.raises(InputError, match="does not take one int16 input"):
        Model(path)
