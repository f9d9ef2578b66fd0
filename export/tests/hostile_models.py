"""Model files made to pass the checks and then to be read otherwise by onnxruntime: byte by byte, not by onnx."""

import onnxruntime as ort
from onnx import TensorProto, helper, onnx_pb
from tiny_models import threshold_nodes, write_threshold_model

NODE, INITIALIZER = 1, 5  # fields of a graph
GRAPH = 7  # of a model
_TOO_WIDE = 1 << 32  # beyond the 32 bits of a tag: protobuf in C++ cuts it off, and reads the field that is left


def varint(value):
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def whole_number(field, value, *, beyond=0):
    return varint(field << 3 | beyond) + varint(value)


def text(field, content, *, beyond=0):
    return varint(field << 3 | 2 | beyond) + varint(len(content)) + content


def _with_part(folder, field, part, nodes=None):
    """The threshold model, and in its graph one more part that onnx would not write."""
    good = write_threshold_model(folder / "good.onnx", nodes=nodes or threshold_nodes())
    proto = onnx_pb.ModelProto.FromString(good.read_bytes())
    graph = proto.graph.SerializeToString() + text(field, part)
    proto.ClearField("graph")
    (folder / "m.onnx").write_bytes(proto.SerializeToString() + text(GRAPH, graph))
    return {"model": folder / "m.onnx"}


def hidden_external_data(folder):
    """An initializer with values of its own, and data_location and external_data behind tags of 33 bits."""
    tensor = whole_number(1, 4) + whole_number(2, TensorProto.UINT8) + text(8, b"secret") + text(9, bytes(4))
    tensor += whole_number(14, 1, beyond=_TOO_WIDE)
    for key, value in ((b"location", b"secret.bin"), (b"offset", b"0"), (b"length", b"4")):
        tensor += text(13, text(1, key) + text(2, value), beyond=_TOO_WIDE)
    nodes = threshold_nodes()[:-1]
    nodes += [
        helper.make_node("Cast", ["secret"], ["secrets"], to=TensorProto.INT32),
        helper.make_node("ReduceMax", ["secrets"], ["largest"], keepdims=0),
        helper.make_node("Add", ["sum", "largest"], ["all"]),
        helper.make_node("Cast", ["all"], ["labels"], to=TensorProto.UINT8),
    ]
    return _with_part(folder, INITIALIZER, tensor, nodes)


def hidden_operator(folder):
    """An Identity whose second type, behind a tag of 33 bits, is the one that counts."""
    node = helper.make_node("RandomUniform", [], ["r"], shape=[3])
    node.ClearField("op_type")
    hidden = text(4, b"Identity") + text(4, b"RandomUniform", beyond=_TOO_WIDE)
    return _with_part(folder, NODE, node.SerializeToString() + hidden)


def nameless_field(folder):
    """A node with a field of number 0, which protobuf refuses."""
    node = helper.make_node("Identity", ["hu"], ["z"]).SerializeToString()
    return _with_part(folder, NODE, node + whole_number(0, 0))


def number_beyond_64_bits(folder):
    """An attribute whose number has 65 bits."""
    attribute = text(1, b"axis") + whole_number(3, 1 << 64) + whole_number(20, 2)
    node = helper.make_node("Flatten", ["hu"], ["z"]).SerializeToString()
    return _with_part(folder, NODE, node + text(5, attribute))


PARTS = {
    "graph": lambda graph: graph,
    "node": lambda graph: graph.node[3],
    "initializer": lambda graph: graph.initializer[0],
    "constant": lambda graph: graph.node[0].attribute[0].t,
    "input": lambda graph: graph.input[0],
    "output": lambda graph: graph.output[0],
    "value_info": lambda graph: graph.value_info.add(name="x"),
}


def foreign_metadata(part):
    """The threshold model with an entry in the metadata of one part of its graph."""

    def build(folder):
        one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
        path = write_threshold_model(folder / "m.onnx", initializers=[one])
        proto = onnx_pb.ModelProto.FromString(path.read_bytes())
        PARTS[part](proto.graph).metadata_props.add(key="script", value="rm -rf")
        path.write_bytes(proto.SerializeToString())
        return {"model": path}

    return build


def write_two_programs(folder):
    """Write an ONNX file that is at the same time a file of ORT's own format, with another program in it.

    ORT's format is a flatbuffer: the place of its root in bytes 0..4, "ORTM" in bytes 4..8. To protobuf they are fields
    that ONNX does not know; the honest model comes behind them, and the rest of the flatbuffer in one more such field.

    Returns:
        The file; as ONNX it is the threshold model, as ORT's format it labels all voxels above 100 HU 2.
    """
    other = write_threshold_model(folder / "other.onnx", nodes=threshold_nodes(values=(2, 0)))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "other.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # else it warns
    ort.InferenceSession(str(other), options, providers=["CPUExecutionProvider"])
    flat = (folder / "other.ort").read_bytes()
    # 08 0A: field 1, 10. 0D 00 'O' 'R' 'T': field 1, four bytes. 'M' 0 0 0 0: field 9, four bytes.
    content = b"\x08\x0a\x0d\0ORTM" + bytes(4) + write_threshold_model(folder / "honest.onnx").read_bytes()
    # All offsets in a flatbuffer count from where they stand: only the first one, of its root, is given.
    begin = int.from_bytes(content[:4], "little") - int.from_bytes(flat[:4], "little")
    assert begin % 8 == 0
    tag = varint(100 << 3 | 2)
    size = begin + len(flat) - len(content) - len(tag) - 3
    content += tag + varint(size)
    (folder / "two.onnx").write_bytes(content + bytes(begin - len(content)) + flat)
    return folder / "two.onnx"


HOSTILE = {
    "external data behind an over-long tag": (hidden_external_data, "a tag is longer than 32 bits"),
    "an operator behind an over-long tag": (hidden_operator, "a tag is longer than 32 bits"),
    "a field of number 0": (nameless_field, "field 0"),
    "a number of 65 bits": (number_beyond_64_bits, "longer than 64 bits"),
    **{f"foreign metadata in its {part}": (foreign_metadata(part), "inside its graph") for part in PARTS},
}
