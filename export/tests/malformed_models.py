"""Model files that are refused: name -> (what makes one in a folder, what is said of it)."""

import json

import numpy as np
from hostile_models import HOSTILE
from malformed_scans import changed, make_folder
from nifti_files import content
from onnx import TensorProto, helper, onnx_pb
from tiny_models import (
    external_tensor,
    hu_input,
    labels_output,
    threshold_card,
    threshold_nodes,
    with_probabilities,
    write_threshold_model,
)

from smile_runtime.model.exported import METADATA_KEY


def model(**changes):
    """A case whose model breaks the contract."""
    return lambda folder: {"model": write_threshold_model(folder / "m.onnx", **changes)}


def model_bytes(make):
    def build(folder):
        good = write_threshold_model(folder / "good.onnx").read_bytes()
        (folder / "m.onnx").write_bytes(make(good))
        return {"model": folder / "m.onnx"}

    return build


def card(text=None, **changes):
    wanted = json.loads(threshold_card().to_json()) | changes
    fields = {key: value for key, value in wanted.items() if value is not None or key not in changes}
    return model(metadata=[(METADATA_KEY, json.dumps(fields) if text is None else text)])


def wrong_k():
    nodes, output = with_probabilities(3)
    return model(nodes=threshold_nodes() + nodes, outputs=[labels_output(), output])


def fails_at_run():
    """The graph can be loaded but reshapes every batch to a shape that does not fit."""
    shape = helper.make_tensor("s", TensorProto.INT64, [4], [1, 1, 7, 7])
    nodes = [helper.make_node("Reshape", ["hu", "s"], ["reshaped"])]
    tail = threshold_nodes()
    for node in tail:
        node.input[:] = ["reshaped" if name == "hu" else name for name in node.input]
    return model(nodes=nodes + tail, initializers=[shape])


def wrong_size():
    """The graph returns another size than it was given."""
    pads = helper.make_tensor("p", TensorProto.INT64, [6], [0, 0, 0, 0, 1, 1])
    nodes = threshold_nodes()
    nodes[-1].output[0] = "small"
    return model(nodes=[*nodes, helper.make_node("Pad", ["small", "p"], ["labels"])], initializers=[pads])


def with_node(kind, inputs=("hu",), outputs=("z",), domain="", initializers=(), **attributes):
    """The model with one more node, whose result is not used."""
    node = helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes)
    return model(nodes=[*threshold_nodes(), node], initializers=initializers)


def with_tensor(change, dims=(2, 2)):
    """The model with an initializer that ``change`` has spoiled."""
    tensor = helper.make_tensor("spoiled", TensorProto.FLOAT, dims, np.zeros(dims, np.float32).tobytes(), raw=True)
    change(tensor)
    return model(initializers=[tensor])


def changed_model(change):
    """The model after ``change`` has edited its parsed form."""

    def edit(good):
        proto = onnx_pb.ModelProto.FromString(good)
        change(proto)
        return proto.SerializeToString()

    return model_bytes(edit)


def numbers(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def external_sparse():
    indices = numbers("i", 0)
    return onnx_pb.SparseTensorProto(values=external_tensor(), indices=indices, dims=[1])


def graph_of(*tensors):
    return helper.make_graph([], "inner", [], [], list(tensors))


def training(proto):
    proto.training_info.add().algorithm.CopyFrom(graph_of())


def function(proto):
    proto.functions.add().name = "mine"


def external_function(proto):
    node = helper.make_node("Constant", [], ["c"], value=external_tensor())
    proto.functions.add(name="mine").node.append(node)


def many_nodes(proto):
    node = proto.graph.node[0]
    proto.graph.node.extend([node] * 50_000)


def unknown_operator(domain):
    nodes = [*threshold_nodes(), helper.make_node("Undefined", ["x"], ["y"], domain=domain)]
    return model(nodes=nodes, domains=[domain] if domain else [])


MODELS = {
    "missing": (lambda folder: {"model": folder / "none.onnx"}, "no such file"),
    "a folder": (lambda folder: {"model": make_folder(folder / "m.onnx")}, "folder"),
    "nothing in it": (model_bytes(lambda good: b""), "does not begin"),
    "text": (model_bytes(lambda good: b"not a model at all"), "not an ONNX file"),
    "a scan": (model_bytes(lambda good: content()), "not an ONNX file"),
    "cut short": (model_bytes(lambda good: good[: len(good) // 2]), "not an ONNX file"),
    "damaged": (model_bytes(lambda good: changed(good, 40, b"\xff" * 8)), "not an ONNX file|cannot load"),
    "only metadata": (model_bytes(lambda good: good[good.index(b"smile_fast") - 6 :]), "ONNX file"),
    "foreign": (model(metadata=[("producer", "someone")]), "without a model card"),
    "two cards": (model(metadata=[(METADATA_KEY, threshold_card().to_json())] * 2), "without a model card"),
    "card is no JSON": (card("organs: liver"), "cannot be used"),
    "card is a list": (card("[]"), "object"),
    "another schema": (card(schema=4), "schema is 4"),
    "an older schema": (card(schema=1), "schema is 1, .*; export it again"),
    "no schema": (card(schema=None), "schema is None"),
    "no organs": (card(organs=[]), "organs"),
    "organ twice": (card(organs=["liver", "liver"]), "organs"),
    "127 organs": (card(organs=[str(n) for n in range(127)]), "organs"),
    "field missing": (card(window=None), "window is missing"),
    "field unknown": (card(crop="body"), "crop is unknown"),
    "even channels": (card(channels=2), "channels"),
    "another orientation": (card(orientation="RAS"), "orientation"),
    "window upside down": (card(window=[240, -160]), "window"),
    "threshold of 2": (card(threshold=2), "threshold"),
    "unknown head": (card(head="relu"), "head"),
    "card for 3 channels": (card(channels=3), "takes 1 channels"),
    "wrong K": (wrong_k(), "segments 3 organs"),
    "label without an organ": (card(organs=["bone"]), "contradicts"),
    "float input": (model(inputs=[hu_input(dtype=TensorProto.FLOAT)]), "int16 input"),
    "another input": (model(inputs=[hu_input(), hu_input(name="more")]), "int16 input"),
    "no labels": (model(outputs=[labels_output(TensorProto.INT32, name="sum")]), "output labels"),
    "another output": (
        model(outputs=[labels_output(), labels_output(TensorProto.INT32, name="sum")]),
        "unknown output",
    ),
    "one size": (model(inputs=[hu_input(dims=("N", 64, 64))]), "only slices of 64 x 64"),
    "external data": (model(initializers=[external_tensor()]), "other files"),
    "unknown operator": (unknown_operator(""), "operator 'Undefined', which"),
    "foreign operator": (unknown_operator("com.example"), "domain 'com.example'"),
    "external data in an attribute": (with_node("Constant", (), value=external_tensor()), "other files"),
    "external data in a list of tensors": (with_node("Constant", (), many=[external_tensor()]), "other files"),
    "external data in a sparse attribute": (with_node("Constant", (), sparse_value=external_sparse()), "other files"),
    "external data in a subgraph": (with_node("If", body=graph_of(external_tensor())), "other files"),
    "external data in a list of subgraphs": (with_node("If", bodies=[graph_of(external_tensor())]), "other files"),
    "external data in a sparse initializer": (
        changed_model(lambda proto: proto.graph.sparse_initializer.append(external_sparse())),
        "other files",
    ),
    "external data in a function": (changed_model(external_function), "other files"),
    "external data by location only": (with_tensor(lambda t: setattr(t, "data_location", 1)), "other files"),
    "a sparse tensor": (
        changed_model(
            lambda proto: proto.graph.sparse_initializer.append(
                onnx_pb.SparseTensorProto(
                    values=helper.make_tensor("v", 1, [1], [1.0]), indices=numbers("i", 0), dims=[2**40]
                )
            )
        ),
        "sparse tensors",
    ),
    "a function": (changed_model(function), "functions of its own"),
    "training": (changed_model(training), "training"),
    "foreign metadata beside the card": (
        model(metadata=[(METADATA_KEY, threshold_card().to_json()), ("script", "rm -rf")]),
        "foreign metadata under the key 'script'",
    ),
    "a loop": (with_node("Loop", body=graph_of()), "operator 'Loop'"),
    "a condition": (with_node("If", then_branch=graph_of(), else_branch=graph_of()), "operator 'If'"),
    "randomness": (with_node("RandomNormal", (), shape=[1]), "operator 'RandomNormal'"),
    "strings": (with_node("StringNormalizer"), "operator 'StringNormalizer'"),
    "a sequence": (with_node("SequenceConstruct"), "operator 'SequenceConstruct'"),
    "a contributed operator": (with_node("FusedConv", domain="com.microsoft"), "'FusedConv' of the domain"),
    "a domain without a node": (model(domains=["ai.onnx.ml"]), "unknown domain 'ai.onnx.ml'"),
    "a tensor of 10^12 values": (with_tensor(lambda t: t.dims.__setitem__(0, 10**12)), "claims 2000000000000 values"),
    "a tensor of negative size": (with_tensor(lambda t: t.dims.__setitem__(0, -2)), "damaged dimensions"),
    "a tensor without values": (with_tensor(lambda t: t.ClearField("raw_data")), "claims 4 values and holds 0"),
    "a tensor with twice its values": (with_tensor(lambda t: t.float_data.extend([0.0] * 4)), "claims 4 values"),
    "a tensor of 100 dimensions": (with_tensor(lambda t: t.dims.extend([1] * 100)), "damaged dimensions"),
    "a tensor of no type": (with_tensor(lambda t: t.ClearField("data_type")), "values of type 0"),
    "a tensor of an unknown type": (with_tensor(lambda t: setattr(t, "data_type", 77)), "values of type 77"),
    "a tensor of strings": (with_tensor(lambda t: setattr(t, "data_type", 8)), "values of type 8"),
    "a tensor cut short": (with_tensor(lambda t: setattr(t, "raw_data", bytes(7))), "holds 7 bytes"),
    "an operator that makes zeros": (
        with_node("ConstantOfShape", ("big",), initializers=[numbers("big", 10**5, 10**5, 10**2)]),
        "operator 'ConstantOfShape', which is not allowed",
    ),
    "an operator that repeats": (
        with_node("Tile", ("hu", "t"), initializers=[numbers("t", 1, 1, 2**20, 2**20)]),
        "'Tile'",
    ),
    "50,000 nodes": (changed_model(many_nodes), "more than any network"),
    "an empty graph with a long name": (
        model_bytes(lambda good: b"\x08\x0a\x12\xff\xff\xff\x7f" + good),
        "longer than",
    ),
    "zeros": (model_bytes(lambda good: bytes(10**6)), "does not begin"),
    "a card of a megabyte": (card("[" * 2**21), "characters"),
    "a body of text": (card(body="yes"), "body"),
    "a body of air": (card(body={"threshold_hu": -5000, "margin_mm": 5}), "body.threshold_hu"),
    "fails at run": (fails_at_run(), "fails on slices"),
    "another size": (wrong_size(), "contradicts"),
    **HOSTILE,
}
