"""Graphs in float32, float16 and int8: what they compute in, and what they compute."""

import json
import logging
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from smile_fast.cli.main import main
from smile_fast.data.store import Store
from smile_fast.exporter.certificate import REQUIREMENTS
from smile_fast.exporter.graph import Probabilities, fold_batchnorm, to_onnx, without_probabilities
from smile_fast.exporter.onnx_file import build, serialize
from smile_fast.exporter.precision import Calibration, calibration_slices, half_network, quantize
from smile_fast.models import ModelConfig, Segmenter
from smile_runtime.model.exported import Model, ModelCard
from tests.exports import make_decisive_run, random_hu, shake_batchnorms, tiny_network, torch_answer
from tests.runs import ORGANS, SHAPE, ct, make_store, truth
from tests.tolerances import (
    FOLDED_LOGITS,
    OTHER_LOGITS,
    PRECISION_PROBABILITY,
    STORED_PROBABILITY,
)

HEADS = ("sigmoid", "softmax")
PRECISIONS = ("fp32", "fp16", "int8")
# Each head with each precision, each head with each dtype, each precision with each dtype: nine files for eighteen.
PAIRED = [
    (HEADS[(row + column) % 2], precision, dtype)
    for row, precision in enumerate(PRECISIONS)
    for column, dtype in enumerate(get_args(Probabilities))
]
HU = ct(3)[:, None]  # [6, 1, 40, 48]


@pytest.fixture(scope="module")
def networks():
    return {head: tiny_network(head) for head in HEADS}


class Graphs(dict):
    """Head, precision and dtype of the probabilities -> graph, made when it is first asked for."""

    def __init__(self, networks):
        self.networks = networks

    def __missing__(self, key):
        head, precision, dtype = key
        if precision == "int8":
            self[key] = quantize(self[head, "fp32", dtype], Calibration(["a"], [ct()[:, None]], [(1.0, 1.0)]))
        else:
            folded = fold_batchnorm(self.networks[head])
            self[key] = to_onnx(half_network(folded) if precision == "fp16" else folded, probabilities=dtype)
        return self[key]


@pytest.fixture(scope="module")
def graphs(networks):
    return Graphs(networks)


def load(proto, head, precision, path):
    path.write_bytes(serialize(proto, ModelCard(ORGANS, 1, (-160.0, 240.0), head, precision=precision)))
    return Model(path)


@pytest.mark.parametrize(("head", "precision", "dtype"), PAIRED)
def test_every_pair_of_choices_computes_what_the_network_computes(networks, graphs, tmp_path, head, precision, dtype):
    labels, probabilities = torch_answer(networks[head], HU)
    assert len(np.unique(labels)) >= 2
    proto = graphs[head, precision, dtype]
    file = load(proto, head, precision, tmp_path / "model.onnx")
    found = file.probabilities(HU)
    assert found.dtype == np.dtype(dtype)
    as_shares = found.astype(np.float32) / (255 if dtype == "uint8" else 1)
    rounding = STORED_PROBABILITY[dtype]["atol"]
    np.testing.assert_allclose(as_shares, probabilities, rtol=0, atol=PRECISION_PROBABILITY[precision] + rounding)
    plain = load(without_probabilities(proto), head, precision, tmp_path / "plain.onnx")
    assert not plain.has_probabilities
    np.testing.assert_array_equal(plain.labels(HU), file.labels(HU))
    assert (plain.labels(HU) == labels).mean() >= REQUIREMENTS[precision].share


@pytest.mark.parametrize("head", HEADS)
def test_uint8_is_the_rounded_share_of_255(graphs, tmp_path, head):
    exact = load(graphs[head, "fp32", "float32"], head, "fp32", tmp_path / "exact.onnx").probabilities(HU)
    found = load(graphs[head, "fp32", "uint8"], head, "fp32", tmp_path / "uint8.onnx").probabilities(HU)
    np.testing.assert_array_equal(found, np.rint(exact * 255).astype(np.uint8))
    assert len(np.unique(found)) > 20


def test_the_exporter_is_silent(networks, capfd, caplog):
    quantize(to_onnx(fold_batchnorm(networks["softmax"])), Calibration(["a"], [HU], [(1.0, 1.0)]))
    assert capfd.readouterr() == ("", "")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_folding_removes_every_batchnorm_and_changes_nothing():
    torch.manual_seed(0)
    model = Segmenter(ModelConfig(ORGANS, "resnet50", 8, width=8, rates=(2,))).eval()
    shake_batchnorms(model)
    folded = fold_batchnorm(model)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) > 50
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    hu = torch.from_numpy(random_hu((2, 40, 48), 1))
    with torch.inference_mode():
        torch.testing.assert_close(folded(hu), model(hu), **FOLDED_LOGITS)
        for norm in norms:
            norm.running_mean.zero_()
            norm.bias.zero_()
        assert not torch.allclose(folded(hu), model(hu), **OTHER_LOGITS)  # they mattered


def constants(proto):
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def convolutions(proto):
    return [node for node in proto.graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_graph_holds_a_batchnorm(graphs, precision):
    for head in HEADS:
        proto = graphs[head, precision, "float32"]
        assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
        assert {node.domain for node in proto.graph.node} == {""}
        assert [opset.domain for opset in proto.opset_import] == [""]


def test_the_shift_of_a_batchnorm_is_the_bias(graphs):
    proto = graphs["sigmoid", "fp32", "float32"]
    for node in convolutions(proto):
        assert np.abs(numpy_helper.to_array(constants(proto)[node.input[2]])).max() > 0  # the folded shift


@pytest.mark.parametrize("head", HEADS)
def test_float16_stops_where_it_would_hurt(graphs, head):
    proto = onnx.shape_inference.infer_shapes(graphs[head, "fp16", "float32"], strict_mode=True)
    types = {info.name: info.type.tensor_type.elem_type for info in (*proto.graph.value_info, *proto.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    *inner, classifier = convolutions(proto)
    assert {types[name] for node in inner for name in node.input[1:]} == {TensorProto.FLOAT16}
    assert {types[name] for name in classifier.input} == {TensorProto.FLOAT}
    others = {
        node.op_type: {types[name] for name in (*node.input, *node.output) if name in types and name}
        for node in proto.graph.node
        if node.op_type in ("Resize", "Clip", "Pad", "ReduceMean", "Sigmoid", "Softmax", "ArgMax")
    }
    assert {"Resize", "Clip", "Pad", "ReduceMean", "ArgMax"} < set(others)
    for op_type, found in others.items():
        assert TensorProto.FLOAT16 not in found, op_type
    assert sum(len(tensor.raw_data) for tensor in proto.graph.initializer) < 0.6 * sum(
        len(tensor.raw_data) for tensor in graphs[head, "fp32", "float32"].graph.initializer
    )


@pytest.mark.parametrize("head", HEADS)
def test_int8_has_scales_per_channel_and_a_float_classifier(graphs, head):
    proto = graphs[head, "int8", "float32"]
    producers = {name: node for node in proto.graph.node for name in node.output}
    known = constants(proto)
    *inner, classifier = convolutions(proto)
    assert known[classifier.input[1]].data_type == TensorProto.FLOAT
    for node in inner:
        dequantize = producers[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        weights, scales = (numpy_helper.to_array(known[name]) for name in dequantize.input[:2])
        assert weights.dtype == np.int8
        assert scales.shape == (len(weights),)
        assert 60 <= np.abs(weights.astype(int)).max() <= 64  # 7 bits: two products fit into 16 bits anywhere
        assert producers[node.input[0]].op_type == "DequantizeLinear"
    resize = next(node for node in proto.graph.node if node.op_type == "Resize")
    assert producers[resize.input[0]].op_type == "Conv"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    cases = [f"train_{number}" for number in range(4)]
    store = make_store(folder / "store", dict.fromkeys([*cases, "test_0", "test_1"], truth()))
    return make_decisive_run(folder / "run", store, channels=3, folds=2)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_command_certifies_a_whole_network(run, tmp_path, capsys, precision):
    target = tmp_path / "model.onnx"
    arguments = ["--precision", precision, "--probabilities", "uint8"]
    assert main(["export", str(run.path), str(target), *arguments]) == 0
    out = capsys.readouterr().out
    file = Model(target)
    parity = file.card.parity
    assert file.card.precision == precision
    assert f"  {precision}, " in out
    assert "probabilities (uint8)" in out
    assert f"Dice between torch and the file: liver {parity['dice']['liver']:.4f}" in out
    required = REQUIREMENTS[precision]
    assert (parity["required_share"], parity["required_dice"]) == (required.share, required.dice)
    assert required.share <= parity["identical_share"] <= 1
    assert 0 < parity["max_probability_difference"] < {"fp16": 0.5, "int8": 0.75}[precision]
    assert ("calibration" in parity) == (precision == "int8")
    if precision == "int8":
        assert parity["calibration"]["cases"] == run.cases("train") != []
        assert f"int8 scales from {parity['calibration']['slices']} slices of 2 training cases" in out
    assert json.loads(file.card.to_json())["precision"] == precision


def test_only_training_cases_set_the_scales(run, graphs, monkeypatch):
    read = []
    original = Store.read_image
    monkeypatch.setattr(Store, "read_image", lambda self, case: read.append(case) or original(self, case))
    graph = graphs["sigmoid", "fp32", "float32"]
    monkeypatch.setattr("smile_fast.exporter.onnx_file.to_onnx", lambda model, probabilities: graph)
    monkeypatch.setattr("smile_fast.exporter.onnx_file.quantize", lambda proto, calibration: proto)
    build(run, run.store, run.load_model(), "int8", "float32")
    assert set(read) == set(run.cases("train"))
    assert not set(read) & {*run.cases("test"), *run.cases("validation")}


def test_calibration_is_spread_over_cohort_and_volume(tmp_path):
    names = [f"train_{number:02}" for number in range(40)]
    store = make_store(tmp_path / "store", dict.fromkeys(names, truth()))
    calibration = calibration_slices(store, names, 3, None)
    assert calibration.cases == names[::3]
    assert calibration.to_json()["slices"] == 4 * len(calibration.cases)
    np.testing.assert_array_equal(calibration.slices[1][0], ct(3)[[0, 0, 1]])
    assert {hu.shape for hu in calibration.slices} == {(4, 3, *SHAPE[1:])}
