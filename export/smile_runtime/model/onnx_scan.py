"""Look into an .onnx file without running it: read protobuf's wire format and follow the parts that matter.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto (IR version 13).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

# Message -> field number -> the message in it, for every way in which a TensorProto can be reached.
CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {
        **{7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
        **{8: "OperatorSetIdProto", 14: "StringStringEntryProto"},
    },
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {
        **{1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
        **{11: "ValueInfoProto", 12: "ValueInfoProto", 13: "ValueInfoProto"},
    },
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
_TENSOR_NAME = 8

_METADATA = {"NodeProto": 9, "GraphProto": 16, "TensorProto": 16, "ValueInfoProto": 4}  # message -> metadata_props

_NODE_TYPE, _NODE_DOMAIN = 4, 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_RAW = 1, 2, 9
# Field of a tensor that holds typed values -> bytes a value, 0 for varints.
_TYPED_VALUES = {4: 4, 5: 0, 7: 0, 10: 8, 11: 0}
# Data type -> bits a value; strings (8), complex numbers (14, 15) and what is newer than int4 are left out.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
_MAX_RANK = 16
_MAX_MESSAGES = 20_000  # ResNet-101 in int8 has about 4,000
_BLOCK_BYTES = 2**20  # copied at a time
_CONTINUED = bytes(range(0x80, 0x100))  # bytes of a varint that are not its last

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
        operators: (domain, type) of all nodes, wherever they are; the standard domain is "".
        domains: Of the operator sets that the file imports.
        parts: Names of the messages that were seen: functions, training and sparse tensors show here.
        wrong_tensor: What is wrong with the first tensor whose values are not as many as its dimensions say.
        inner_metadata: Whether any part below the model has metadata of its own.
    """

    has_graph: bool = False
    external_data: bool = False
    metadata: list[tuple[str, str]] = field(default_factory=list)
    operators: set[tuple[str, str]] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    parts: set[str] = field(default_factory=set)
    wrong_tensor: str | None = None
    inner_metadata: bool = False


def scan_onnx(content: bytes) -> Scan:
    """Visit all nodes, tensors, attributes, subgraphs and functions of a model.

    Args:
        content: The whole file.

    Returns:
        What was found. Nothing is copied out of ``content`` but metadata and the names of operators.

    Raises:
        WireError: ``content`` is not a protobuf message of this structure, or of more messages than any network.
    """
    scan = Scan()
    stack = [("ModelProto", memoryview(content))]
    messages = 0
    while stack:
        message, data = stack.pop()
        scan.parts.add(message)
        messages += 1
        if message == "TensorProto":
            _tensor(data, scan)
            continue
        if message == "NodeProto":
            kind, domain = _texts(data, (_NODE_TYPE, _NODE_DOMAIN)).values()
            scan.operators.add(("" if domain == "ai.onnx" else domain, kind))
        children, metadata = CHILDREN.get(message, {}), _METADATA.get(message)
        for number, wire, value in _fields(data):
            scan.inner_metadata |= number == metadata
            if number not in children:
                continue
            if wire != _BYTES or isinstance(value, int):
                raise WireError(f"field {number} of {message} is no message")
            if children[number] == "StringStringEntryProto":
                scan.metadata.append(_entry(value))
            elif children[number] == "OperatorSetIdProto":
                scan.domains.add(_texts(value, (1,))[1])
            else:
                stack.append((children[number], value))
                if messages + len(stack) > _MAX_MESSAGES:
                    raise WireError(f"it has more than {_MAX_MESSAGES} parts, more than any network")
            scan.has_graph |= message == "ModelProto" and number == 7
    return scan


def _tensor(data: memoryview, scan: Scan) -> None:
    """Note where a tensor's values are, and whether they are as many as its dimensions say."""
    dims: list[int] = []
    name = ""
    kind = typed = 0
    raw: memoryview | None = None
    external = False
    for number, wire, value in _fields(data):
        if number == _TENSOR_DIMS:
            dims += _numbers(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME and not isinstance(value, int):
            name = _text(value)
        elif number == _TENSOR_RAW and not isinstance(value, int):
            raw = value
        elif number in _TYPED_VALUES:
            typed += _count(value, wire, _TYPED_VALUES[number])
        scan.inner_metadata |= number == _METADATA["TensorProto"]
        external |= number == TENSOR_EXTERNAL_DATA or (number == TENSOR_DATA_LOCATION and value != 0)
    if external:
        scan.external_data = True
        return
    claimed = math.prod(dims[: _MAX_RANK + 1])
    if kind not in _BITS:
        problem = f"has values of type {kind}, which no network needs"
    elif len(dims) > _MAX_RANK or max(dims, default=0) >= 2**63:
        problem = "has damaged dimensions"
    elif raw is not None and (typed or len(raw) != -(-claimed * _BITS[kind] // 8)):
        problem = f"claims {claimed} values and holds {len(raw)} bytes of them"
    elif raw is None and typed != claimed:
        problem = f"claims {claimed} values and holds {typed}"
    else:
        return
    scan.wrong_tensor = scan.wrong_tensor or f"tensor {name!r} {problem}"


def _count(value: int | memoryview, wire: int, size: int) -> int:
    """Number of values in one field of a tensor: ``size`` bytes each, or varints for 0."""
    if isinstance(value, int) or wire != _BYTES:
        return 1
    if size:
        return len(value) // size
    blocks = (value[start : start + _BLOCK_BYTES] for start in range(0, len(value), _BLOCK_BYTES))
    return sum(len(bytes(block).translate(None, _CONTINUED)) for block in blocks)


def _numbers(value: int | memoryview) -> list[int]:
    """Whole numbers of a repeated field, packed or one a field; of many the first."""
    if isinstance(value, int):
        return [value]
    numbers: list[int] = []
    position = 0
    while position < len(value) and len(numbers) <= _MAX_RANK:
        number, position = _varint(value, position)
        numbers.append(number)
    return numbers


def _entry(data: memoryview) -> tuple[str, str]:
    texts = _texts(data, (1, 2))
    return texts[1], texts[2]


def _texts(data: memoryview, wanted: tuple[int, ...]) -> dict[int, str]:
    """Some string fields of a message, "" where they are not there."""
    texts = dict.fromkeys(wanted, "")
    for number, _, value in _fields(data):
        if number in texts and not isinstance(value, int):
            texts[number] = _text(value)
    return texts


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("a name or a metadata entry is not UTF-8") from error


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type and value of every field in one message."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if tag >= 2**32:  # protobuf in C++ cuts it to 32 bits and would read another field than this scan
            raise WireError(f"a tag is longer than 32 bits before byte {position}")
        if number == 0:
            raise WireError(f"field 0 before byte {position}")
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
        if position + size > end:
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
        if byte < 0x80 and value < 2**64:  # protobuf in C++ cuts off what is above
            return value, position
    raise WireError(f"a number is longer than 64 bits at byte {position}")
