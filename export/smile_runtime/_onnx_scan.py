"""Look into an .onnx file without running it: a reader of protobuf's wire format that follows the parts that matter.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto (IR version 13).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

# Message -> field number -> the message in it, for every way in which a TensorProto can be reached.
CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 14: "StringStringEntryProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 10: "TensorProto"},
        **{6: "GraphProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
TENSOR_EXTERNAL_DATA = 13
TENSOR_DATA_LOCATION = 14

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which ONNX does not use


class WireError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass
class Scan:
    """What an .onnx file contains, as far as it decides whether to trust it.

    Attributes:
        has_graph: Whether there is a graph at all.
        external_data: Whether any tensor lies outside the file.
        metadata: The model's ``metadata_props`` (key, value), in file order.
    """

    has_graph: bool = False
    external_data: bool = False
    metadata: list[tuple[str, str]] = field(default_factory=list)


def scan_onnx(content: bytes) -> Scan:
    """Walk through all nodes, tensors, attributes, subgraphs and functions of a model.

    Args:
        content: The whole file.

    Returns:
        What was found. Nothing is copied out of ``content`` but the metadata.

    Raises:
        WireError: ``content`` is not a protobuf message of this structure.
    """
    scan = Scan()
    stack = [("ModelProto", memoryview(content))]
    while stack:
        message, data = stack.pop()
        children = CHILDREN.get(message, {})
        for number, wire, value in _fields(data):
            if message == "TensorProto":
                in_another_file = number == TENSOR_DATA_LOCATION and value != 0
                scan.external_data |= number == TENSOR_EXTERNAL_DATA or in_another_file
            elif number in children:
                if wire != _BYTES or isinstance(value, int):
                    raise WireError(f"field {number} of {message} is no message")
                if children[number] == "StringStringEntryProto":
                    scan.metadata.append(_entry(value))
                else:
                    stack.append((children[number], value))
                scan.has_graph |= message == "ModelProto" and number == 7
    return scan


def _entry(data: memoryview) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, _, value in _fields(data):
        if number in texts and not isinstance(value, int):
            try:
                texts[number] = str(value, "utf-8")
            except UnicodeDecodeError as error:
                raise WireError("a metadata entry is not UTF-8") from error
    return texts[1], texts[2]


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type and value of every field in one message."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise WireError(f"wire type {wire} at byte {position}")
        if number == 0 or position + size > end:
            raise WireError(f"field {number} at byte {position} is longer than its message")
        yield number, wire, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):  # 10 bytes at most
        if position >= len(data):
            raise WireError("a number is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError(f"a number is longer than 64 bits at byte {position}")
