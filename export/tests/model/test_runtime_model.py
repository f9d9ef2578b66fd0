import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from nifti_files import random_hu
from onnx import NodeProto, TensorProto, helper, onnx_pb
from tiny_models import (
    external_tensor,
    hu_input,
    labels_output,
    save,
    threshold_card,
    threshold_labels,
    threshold_nodes,
    with_probabilities,
    write_threshold_model,
)

from smile_runtime.errors import InputError
from smile_runtime.model import onnx_scan as wire
from smile_runtime.model.exported import METADATA_KEY, Model, ModelCard
from smile_runtime.volume.body import BodyRule


def test_a_card_comes_back_as_it_went():
    card = threshold_card(channels=3, head="softmax", provenance={"run": "a", "epochs": 3}, parity={"identical": 1.0})
    assert ModelCard.from_json(card.to_json()) == card
    assert next(iter(json.loads(card.to_json()))) == "schema"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"organs": ()}, "organs"),
        ({"organs": ("liver", "liver")}, "organs"),
        ({"organs": ("liver", "")}, "organs"),
        ({"organs": ("liver\nspleen",)}, "organs"),
        ({"organs": ("liver", 3)}, "organs"),
        ({"organs": "liver"}, "organs"),
        ({"organs": tuple(map(str, range(127)))}, "organs"),
        ({"channels": 2}, "channels"),
        ({"channels": 0}, "channels"),
        ({"channels": True}, "channels"),
        ({"channels": 3.0}, "channels"),
        ({"window": (1, 1)}, "window"),
        ({"window": (0, float("inf"))}, "window"),
        ({"window": (0, 1, 2)}, "window"),
        ({"window": ("0", "1")}, "window"),
        ({"head": "relu"}, "head"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"orientation": "RAS"}, "orientation"),
        ({"provenance": []}, "provenance"),
        ({"parity": None}, "parity"),
        ({"schema": 4}, "schema"),
        ({"schema": 1}, "schema is 1"),
        ({"schema": True}, "schema is True"),
        ({"body": {}}, "body"),
        ({"body": {"threshold_hu": -500.0}}, "body"),
        ({"body": {"threshold_hu": -500.0, "margin_mm": 5.0, "more": 1}}, "body"),
    ],
)
def test_a_wrong_card_is_neither_made_nor_read(change, why):
    with pytest.raises(ValueError, match=why):
        threshold_card(**change)
    text = json.dumps(json.loads(threshold_card().to_json()) | change)
    # An infinite number is no JSON: that is what is wrong with it there.
    why = "Infinity is not a JSON number" if change.get("window") == (0, float("inf")) else why
    with pytest.raises(InputError, match=f"^here: model card cannot be used, .*{why}.*; export it again$"):
        ModelCard.from_json(text, source="here")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[1]", "object"),
        ("{", "Expecting"),
        ("[" * 100_000, "cannot be used"),
        (" " * 2**21, "characters"),
        (threshold_card().to_json().replace("240.0", "NaN"), "NaN"),
        (threshold_card().to_json().replace('"head"', '"tail"'), "head is missing|tail is unknown"),
        (json.dumps(json.loads(threshold_card().to_json()) | {"crop": True}), "crop is unknown"),
    ],
)
def test_what_is_no_card(text, why):
    with pytest.raises(InputError, match=why) as caught:
        ModelCard.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "numbers",
    [
        {"threshold_hu": -2000},
        {"threshold_hu": float("nan")},
        {"threshold_hu": True},
        {"threshold_hu": "-500"},
        {"margin_mm": -1},
        {"margin_mm": 1e9},
        {"margin_mm": None},
    ],
)
def test_a_rule_for_the_body_that_cannot_be(numbers):
    with pytest.raises(ValueError, match=f"body.{next(iter(numbers))} is"):
        BodyRule(**numbers)
    entry = {"threshold_hu": -500.0, "margin_mm": 5.0} | numbers
    is_nan = any(value != value for value in numbers.values())
    with pytest.raises(InputError, match="NaN is not a JSON number" if is_nan else "body"):
        ModelCard.from_json(json.dumps(json.loads(threshold_card().to_json()) | {"body": entry}))


def test_a_card_of_an_older_schema_is_refused():
    card = json.loads(threshold_card(organs=("liver",)).to_json()) | {"schema": 1}
    del card["body"], card["precision"]
    with pytest.raises(InputError, match=r"schema is 1, this version of smile_runtime reads 3; export it again"):
        ModelCard.from_json(json.dumps(card))


def test_the_rule_for_the_body_comes_back_as_it_went():
    card = threshold_card(body=BodyRule(-300.0, 12.5))
    assert json.loads(card.to_json())["body"] == {"threshold_hu": -300.0, "margin_mm": 12.5}
    assert ModelCard.from_json(card.to_json()) == card


def test_a_certificate_with_nan_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        threshold_card(parity={"dice": float("nan")}).to_json()


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_labels(threshold_model, threads):
    model = Model(threshold_model, threads=threads)
    assert model.card == threshold_card()
    hu = random_hu((3, 1, 17, 9))
    labels = model.labels(hu)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, threshold_labels(hu[:, 0]))
    assert not model.has_probabilities
    with pytest.raises(InputError, match="without probabilities"):
        model.probabilities(hu)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_probabilities(tmp_path, dtype):
    nodes, output = with_probabilities(2, dtype)
    path = write_threshold_model(
        tmp_path / "m.onnx", nodes=threshold_nodes() + nodes, outputs=[labels_output(), output]
    )
    model = Model(path)
    hu = random_hu((3, 1, 17, 9))
    assert model.has_probabilities
    assert np.array_equal(model.probabilities(hu), np.repeat(hu, 2, axis=1))
    assert np.array_equal(model.labels(hu), threshold_labels(hu[:, 0]))


def test_a_provider_that_does_not_start_is_an_error(threshold_model, monkeypatch):
    """onnxruntime-gpu without a driver lists CUDA, and then goes on with the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda content, options, providers: real(content, options, providers=providers[1:])
    )
    with pytest.raises(InputError, match="does not start"):
        Model(threshold_model, provider="cuda")


def nested(tensor):
    """The ways in which a tensor can be in a model, other than as an initializer of the main graph."""
    sparse = onnx_pb.SparseTensorProto(values=tensor, dims=[1])
    indices = onnx_pb.SparseTensorProto(indices=tensor, dims=[1])
    graph = helper.make_graph([], "inner", [], [], [tensor])
    sparse_graph = onnx_pb.GraphProto(sparse_initializer=[sparse])
    attributes = {
        "tensor": onnx_pb.AttributeProto(name="a", t=tensor),
        "tensors": onnx_pb.AttributeProto(name="a", tensors=[tensor]),
        "graph": onnx_pb.AttributeProto(name="a", g=graph),
        "graphs": onnx_pb.AttributeProto(name="a", graphs=[graph]),
        "sparse": onnx_pb.AttributeProto(name="a", sparse_tensor=sparse),
        "sparse list": onnx_pb.AttributeProto(name="a", sparse_tensors=[indices]),
        "two levels": onnx_pb.AttributeProto(
            name="a",
            g=onnx_pb.GraphProto(node=[NodeProto(attribute=[onnx_pb.AttributeProto(name="b", g=sparse_graph)])]),
        ),
    }
    for name, attribute in attributes.items():
        yield name, onnx_pb.ModelProto(graph=onnx_pb.GraphProto(node=[NodeProto(attribute=[attribute])]))
    yield "sparse initializer", onnx_pb.ModelProto(graph=sparse_graph)
    yield "initializer", onnx_pb.ModelProto(graph=graph)
    yield "training", onnx_pb.ModelProto(training_info=[onnx_pb.TrainingInfoProto(algorithm=graph)])
    yield "initialization", onnx_pb.ModelProto(training_info=[onnx_pb.TrainingInfoProto(initialization=graph)])
    node = NodeProto(attribute=[attributes["tensor"]])
    yield "function", onnx_pb.ModelProto(functions=[onnx_pb.FunctionProto(node=[node])])
    default = attributes["tensor"]
    yield "function default", onnx_pb.ModelProto(functions=[onnx_pb.FunctionProto(attribute_proto=[default])])


PLACES = [name for name, _ in nested(TensorProto())]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_it_is(place):
    inline = helper.make_tensor("weights", TensorProto.FLOAT, [1], [1.0])
    assert not wire.scan_onnx(dict(nested(inline))[place].SerializeToString()).external_data
    assert wire.scan_onnx(dict(nested(external_tensor()))[place].SerializeToString()).external_data
    location = external_tensor()
    del location.external_data[:]  # either of the two fields is enough
    assert wire.scan_onnx(dict(nested(location))[place].SerializeToString()).external_data
    path = external_tensor()
    path.data_location = TensorProto.DEFAULT
    assert wire.scan_onnx(dict(nested(path))[place].SerializeToString()).external_data


def test_the_scanner_knows_every_way_to_a_tensor():
    """Compared with the onnx package's own description of the format."""
    types, todo = {}, [onnx_pb.ModelProto.DESCRIPTOR]
    while todo:
        message = todo.pop()
        types[message.name] = {f.number: f.message_type for f in message.fields if f.message_type is not None}
        todo += [child for child in types[message.name].values() if child.name not in types]
    reaching = {"TensorProto"}
    while grown := {n for n, f in types.items() if {c.name for c in f.values()} & reaching} - reaching:
        reaching |= grown
    for name in reaching - {"TensorProto"}:
        wanted = {number: child.name for number, child in types[name].items() if child.name in reaching}
        found = {number: child for number, child in wire.CHILDREN.get(name, {}).items() if child in reaching}
        assert found == wanted, name
    tensor = {f.name: f.number for f in TensorProto.DESCRIPTOR.fields}
    assert (tensor["external_data"], tensor["data_location"]) == (wire.TENSOR_EXTERNAL_DATA, wire.TENSOR_DATA_LOCATION)


def test_the_scanner_reads_metadata_like_onnx(tmp_path):
    path = write_threshold_model(tmp_path / "m.onnx", metadata=[("a", "1"), ("ü", "é" * 300), ("a", "2"), ("", "")])
    assert wire.scan_onnx(path.read_bytes()).metadata == [("a", "1"), ("ü", "é" * 300), ("a", "2"), ("", "")]


@pytest.mark.parametrize(
    "content",
    [
        b"\x0b",  # a group
        b"\x3a\x05abc",  # a graph longer than the file
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of more than 64 bits
        b"\x3a",  # a length that is not there
        b"\x38\x01",  # a graph that is a number
        b"\x02\x00",  # field 0
        b"\x0d\x00",  # a fixed number that is cut short
        b"\x72\x04\x0a\x02\xff\xfe",  # metadata that is not UTF-8
        b"plain text",
    ],
)
def test_what_is_no_protobuf_message(content):
    with pytest.raises(wire.WireError):
        wire.scan_onnx(content)


def test_no_damage_to_a_file_gives_anything_but_an_input_error(threshold_model, tmp_path):
    """Every prefix, and every byte changed: refused with a sentence, or harmless."""
    good = threshold_model.read_bytes()
    path = tmp_path / "m.onnx"
    hu = random_hu((1, 1, 4, 4))
    messages = []
    rng = np.random.default_rng(0)
    for _ in range(150):
        bad = bytearray(good[: rng.integers(1, len(good))] if rng.random() < 0.3 else good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            Model(path).labels(hu)
        except InputError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
    assert 50 < len(messages) < 150


def test_a_file_on_its_own_is_enough(threshold_model, tmp_path):
    """Moved elsewhere, away from everything, the file still runs."""
    shutil.copy(threshold_model, tmp_path / "moved.onnx")
    script = (
        "import sys, numpy as np; from smile_runtime.model.exported import Model;"
        "print(Model(sys.argv[1]).labels(np.full((1, 1, 2, 2), 500, np.int16)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "moved.onnx"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[[[2, 2], [2, 2]]]\n"


def test_every_break_of_the_contract_is_refused(tmp_path):
    cases = {
        "one int16 input": {"inputs": [hu_input(), hu_input(name="more")]},
        "takes 3 channels and its model card says 1": {"inputs": [hu_input(3)]},
        "takes C channels": {"inputs": [hu_input("C")]},
        "only slices of 64 x 64": {"inputs": [hu_input(dims=("N", 64, 64))]},
        "batches of 1": {"inputs": [hu_input(dims=(1, "H", "W"))]},
        "uint8 output labels": {
            "outputs": [labels_output(TensorProto.INT32)],
            "nodes": threshold_nodes(dtype=TensorProto.INT32),
        },
        "model card": {"metadata": []},
        "without a model card": {"metadata": [(METADATA_KEY, threshold_card().to_json())] * 2},
    }
    for why, changes in cases.items():
        with pytest.raises(InputError, match=why):
            Model(write_threshold_model(tmp_path / "m.onnx", **changes))


def test_probabilities_that_break_the_contract(tmp_path):
    for organs, dtype, why in [(3, TensorProto.FLOAT, "segments 3 organs"), (2, TensorProto.DOUBLE, "as floats")]:
        nodes, output = with_probabilities(organs, dtype)
        path = save(tmp_path / "m.onnx", threshold_nodes() + nodes, [hu_input()], [labels_output(), output])
        with pytest.raises(InputError, match=why):
            Model(path)
