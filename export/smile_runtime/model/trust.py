"""A model file is data: what is refused before onnxruntime sees it."""

import math
from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.model.card import METADATA_KEY, ModelCard
from smile_runtime.model.onnx_scan import Scan, WireError, scan_onnx

# Standard operators that compute tensors from tensors: no control flow, no sequences, no strings, no randomness, none
# that make a tensor of numbers (ConstantOfShape, OneHot, Range) or many of one (Tile).
OPERATORS = frozenset(
    """Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant Conv
    ConvInteger ConvTranspose CumSum DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu
    Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool
    Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf
    IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool Mean Min
    Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear Reciprocal ReduceL1 ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round ScatterElements ScatterND Selu
    Shape Sigmoid Sign Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu TopK
    Transpose Trilu Unsqueeze Where Xor""".split()
)
# What onnxruntime's own quantisation tool writes beside them.
MICROSOFT_OPERATORS = frozenset(
    """DequantizeLinear QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul
    QLinearSigmoid QLinearSoftmax QuantizeLinear""".split()
)
DOMAINS = {"": OPERATORS, "com.microsoft": MICROSOFT_OPERATORS}

# Operators that make a tensor as large as an input says, and the inputs that say it.
_SIZE_INPUTS = {"Expand": (1,), "Pad": (1,), "Resize": (1, 2, 3)}
_MAX_VALUES = 2**28  # in a tensor whose size a constant says: a batch of 1,024 slices of 512 x 512
_MAX_SCALE = 2**12  # of all axes together: output stride 16 needs 256
_MAX_STEP = 512  # padding and strides of one operator: the largest atrous rate is 36


def trusted_card(content: bytes, path: Path) -> ModelCard:
    """Check a whole model file without running anything of it.

    Args:
        content: The file.
        path: Its name, for messages.

    Returns:
        The file's card.

    Raises:
        InputError: It is no ONNX file or damaged; it keeps tensors in other files; it holds operators, functions,
            training, sparse tensors or metadata that no exported model has; a tensor lies about its size or is made
            absurdly large; it has no card, or a wrong one.
    """
    try:
        scan = scan_onnx(content)
    except WireError as error:
        raise InputError(f"{path} is not an ONNX file, or is damaged or cut short: {error}") from error
    if not scan.has_graph:
        raise InputError(f"{path} is not an ONNX file: it holds no graph")
    if scan.external_data:
        raise InputError(f"{path} keeps tensors in other files, which is not allowed: export it as one file")
    cards = [value for key, value in scan.metadata if key == METADATA_KEY]
    if len(cards) != 1:
        raise InputError(
            f"{path} is an ONNX file without a model card: only files from `smile-fast export` can be used"
        )
    if foreign := _foreign_part(scan) or _absurd_size(scan):
        raise InputError(f"{path} {foreign}: it does not come from `smile-fast export`, or was changed after it")
    return ModelCard.from_json(cards[0], source=f"the model card of {path}")


def _foreign_part(scan: Scan) -> str:
    """What no exported file holds, "" if there is nothing of the kind."""
    for part, name in (
        ("FunctionProto", "functions of its own"),
        ("TrainingInfoProto", "instructions for training"),
        ("SparseTensorProto", "sparse tensors"),
    ):
        if part in scan.parts:
            return f"holds {name}"
    for domain in sorted(scan.domains - DOMAINS.keys() - {"ai.onnx"}):
        return f"imports operators of the unknown domain {domain!r}"
    for domain, kind in sorted(scan.operators):
        if kind not in DOMAINS.get(domain, ()):
            return f"holds the operator {kind!r}{f' of the domain {domain!r}' if domain else ''}, which is not allowed"
    for key, _ in scan.metadata:
        if key != METADATA_KEY:
            return f"holds foreign metadata under the key {key[:80]!r}"
    return "holds foreign metadata inside its graph" if scan.inner_metadata else ""


def _absurd_size(scan: Scan) -> str:
    if scan.wrong_tensor:
        return f"is damaged, its {scan.wrong_tensor}"
    if not scan.largest_step <= _MAX_STEP:
        return f"holds an operator that pads or strides by {scan.largest_step:g}"
    for kind, inputs, _ in scan.nodes:
        for number in _SIZE_INPUTS.get(kind, ()):
            values = scan.constants.get(inputs[number], []) if len(inputs) > number else []
            if not _is_modest(kind, number, values):
                return f"makes an absurdly large tensor by its operator {kind!r}"
    return _constant_part(scan)


def _is_modest(kind: str, number: int, values: list[float]) -> bool:
    """Whether the constants that an operator takes as its sizes, pads or scales are those of a network for slices."""
    sizes = [max(1.0, abs(value)) for value in values]
    if kind == "Pad":
        return max(sizes, default=1) <= _MAX_STEP
    is_scale = kind == "Resize" and number < 3
    return math.prod(sizes) <= (_MAX_SCALE if is_scale else _MAX_VALUES)


def _constant_part(scan: Scan) -> str:
    """A node that does not see the scan, "" if there is none.

    onnxruntime computes such nodes, of whatever size, when it makes a session; an exported graph has none but those
    that turn int8 weights into float ones of the same size.
    """
    known = {"", *scan.constants}
    weights = [node for node in scan.nodes if node[0] == "DequantizeLinear" and known.issuperset(node[1])]
    known.update(*(outputs for _, _, outputs in weights))
    for kind, inputs, _ in scan.nodes:
        if known.issuperset(inputs) and kind != "DequantizeLinear":
            return f"computes something from constants alone by its operator {kind!r}"
    return ""
