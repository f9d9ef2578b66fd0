"""Small ONNX files that keep (or break) the contract of an exported model, and what they compute in numpy."""

import numpy as np
from onnx import TensorProto, helper

from smile_runtime.model.exported import METADATA_KEY, ModelCard
from smile_runtime.volume.pixel_size import PixelSpace

DYNAMIC = ("N", "H", "W")


def threshold_card(**changes):
    return ModelCard(
        **{"organs": ("bone", "metal"), "channels": 1, "window": (-160.0, 240.0), "head": "sigmoid"} | changes
    )


def save(path, nodes, inputs, outputs, card=None, initializers=(), metadata=None, domains=()):
    """Write a model; ``metadata`` (key, value) pairs override the card."""
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if metadata is None:
        metadata = [(METADATA_KEY, (card or threshold_card()).to_json())]
    for key, value in metadata:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return path


def hu_input(channels=1, dtype=TensorProto.INT16, dims=DYNAMIC, name="hu"):
    batch, height, width = dims
    return helper.make_tensor_value_info(name, dtype, [batch, channels, height, width])


def labels_output(dtype=TensorProto.UINT8, dims=DYNAMIC, name="labels"):
    return helper.make_tensor_value_info(name, dtype, list(dims))


def threshold_nodes(values=(1, 1), dtype=TensorProto.UINT8):
    """labels = values[0] where HU > 100, plus values[1] where HU > 300, from the first channel."""
    constants = {"zero": 0, "low": 100, "high": 300, "first": values[0], "second": values[1]}
    return [
        *(_int32(name, value) for name, value in constants.items()),
        helper.make_node("Gather", ["hu", "zero"], ["middle"], axis=1),
        helper.make_node("Cast", ["middle"], ["x"], to=TensorProto.INT32),
        *_scaled_mask("x", "low", "first", "one"),
        *_scaled_mask("x", "high", "second", "two"),
        helper.make_node("Add", ["one", "two"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["labels"], to=dtype),
    ]


def write_threshold_model(path, **changes):
    options = {"nodes": threshold_nodes(), "inputs": [hu_input()], "outputs": [labels_output()]}
    return save(path, **(options | changes))


def with_probabilities(organs, dtype=TensorProto.FLOAT):
    """Nodes and the info of a second output: the first channel, ``organs`` times over."""
    nodes = [
        helper.make_node("Cast", ["hu"], ["hu_float"], to=dtype),
        helper.make_node("Concat", ["hu_float"] * organs, ["probabilities"], axis=1),
    ]
    return nodes, helper.make_tensor_value_info("probabilities", dtype, ["N", organs, "H", "W"])


NEIGHBOUR_ORGANS = tuple(f"organ {value}" for value in range(1, 16))


def write_neighbour_model(path):
    """1 where HU > 100, plus 2, 4, 8 where the next voxel along W, H, D is; beyond the end: no, no, the same."""
    nodes = [
        *(_int32(name, value) for name, value in {"low": 100, "one": 1, "two": 2, "four": 4, "eight": 8}.items()),
        _int64("centre", 1),
        _int64("above", 2),
        helper.make_node("Gather", ["hu", "centre"], ["centre16"], axis=1),
        helper.make_node("Gather", ["hu", "above"], ["next16"], axis=1),
        helper.make_node("Cast", ["centre16"], ["x"], to=TensorProto.INT32),
        helper.make_node("Cast", ["next16"], ["z"], to=TensorProto.INT32),
        *_shifted("x", "w", axis=2),
        *_shifted("x", "h", axis=1),
        *_scaled_mask("x", "low", "one", "m1"),
        *_scaled_mask("w", "low", "two", "m2"),
        *_scaled_mask("h", "low", "four", "m4"),
        *_scaled_mask("z", "low", "eight", "m8"),
        helper.make_node("Sum", ["f1", "f2", "f4", "f8"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["labels"], to=TensorProto.UINT8),
    ]
    casts = [helper.make_node("Cast", [f"m{n}"], [f"f{n}"], to=TensorProto.FLOAT) for n in (1, 2, 4, 8)]
    card = threshold_card(organs=NEIGHBOUR_ORGANS, channels=3)
    return save(path, [*nodes[:-2], *casts, *nodes[-2:]], [hu_input(3)], [labels_output()], card)


def neighbour_labels(slices):
    """What the neighbour model computes: [D, H, W] -> uint8 [D, H, W]."""
    inside = np.asarray(slices) > 100
    right, below = np.zeros_like(inside), np.zeros_like(inside)
    right[:, :, :-1] = inside[:, :, 1:]
    below[:, :-1] = inside[:, 1:]
    above = np.concatenate([inside[1:], inside[-1:]])
    return (inside + 2 * right + 4 * below + 8 * above).astype(np.uint8)


SPACE = PixelSpace(0.8, 8, (0.6, 0.9), (1.0, 5.0), 0.1)


def write_spacing_model(path, **changes):
    """A model with a pixel size: 1 where HU > 10 times the rows' mm plus the columns' mm times 100."""
    weights = helper.make_tensor("weights", TensorProto.DOUBLE, [2], [10.0, 100.0])
    nodes = [
        helper.make_node("Constant", [], ["weights"], value=weights),
        helper.make_node("Mul", ["pixel_spacing", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted"], ["threshold"], keepdims=0),
        _int64("zero", 0),
        helper.make_node("Gather", ["hu", "zero"], ["middle"], axis=1),
        helper.make_node("Cast", ["middle"], ["x"], to=TensorProto.DOUBLE),
        helper.make_node("Greater", ["x", "threshold"], ["above"]),
        helper.make_node("Cast", ["above"], ["labels"], to=TensorProto.UINT8),
    ]
    spacing = helper.make_tensor_value_info("pixel_spacing", TensorProto.DOUBLE, [2])
    options = {"inputs": [hu_input(), spacing], "card": threshold_card(pixels=SPACE)}
    return save(path, **{"nodes": nodes, "outputs": [labels_output()], **options, **changes})


def spacing_labels(slices, spacing):
    """What the spacing model computes; spacing (y, x), mm."""
    return (np.asarray(slices) > 10 * spacing[0] + 100 * spacing[1]).astype(np.uint8)


def threshold_labels(slices):
    """What the threshold model computes."""
    return (np.asarray(slices) > 100).astype(np.uint8) + (np.asarray(slices) > 300)


def external_tensor():
    """A tensor that claims to lie in /etc/passwd."""
    tensor = helper.make_tensor("weights", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def _int32(name, value):
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT32, [], [value]))


def _int64(name, *values):
    dims = [] if len(values) == 1 else [len(values)]
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, dims, values))


def _scaled_mask(source, above, value, out):
    """out = value where source > above, else 0."""
    return [
        helper.make_node("Greater", [source, above], [f"{out}_bool"]),
        helper.make_node("Cast", [f"{out}_bool"], [f"{out}_mask"], to=TensorProto.INT32),
        helper.make_node("Mul", [f"{out}_mask", value], [out]),
    ]


def _shifted(source, out, axis):
    """out[i] = source[i + 1] along ``axis`` of [N, H, W], 0 beyond the end."""
    pads = [0] * 6
    pads[3 + axis] = 1
    return [
        _int64(f"{out}_pads", *pads),
        helper.make_node("Pad", [source, f"{out}_pads"], [f"{out}_padded"]),
        helper.make_node("Constant", [], [f"{out}_from"], value_ints=[1]),
        helper.make_node("Constant", [], [f"{out}_to"], value_ints=[2**31 - 1]),
        helper.make_node("Constant", [], [f"{out}_axis"], value_ints=[axis]),
        helper.make_node("Slice", [f"{out}_padded", f"{out}_from", f"{out}_to", f"{out}_axis"], [out]),
    ]
