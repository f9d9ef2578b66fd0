"""A model file is data: what is refused before onnxruntime sees it."""

import math
from pathlib import Path

from smile_runtime._onnx_scan import SIZE_INPUTS, Scan, WireError, scan_onnx
from smile_runtime.card import METADATA_KEY, ModelCard
from smile_runtime.errors import InputError

# Standard operators that compute tensors from tensors: no control flow, no sequences, no strings, no randomness.
OPERATORS = frozenset(
    """Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant ConstantOfShape
    Conv ConvInteger ConvTranspose CumSum DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu
    Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul
    Neg Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear Range Reciprocal ReduceL1 ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round ScatterElements ScatterND Selu Shape
    Sigmoid Sign Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Where Xor""".split()
)
# What onnxruntime's own quantisation tool writes beside them.
MICROSOFT_OPERATORS = frozenset(
    """DequantizeLinear QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul
    QLinearSigmoid QLinearSoftmax QuantizeLinear""".split()
)
DOMAINS = {"": OPERATORS, "com.microsoft": MICROSOFT_OPERATORS}

_MAX_CONSTANT_VALUES = 2**28  # in a tensor whose size a constant says: a batch of 1,024 slices of 512 x 512


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
    return ""


def _absurd_size(scan: Scan) -> str:
    if scan.wrong_tensor:
        return f"is damaged, its {scan.wrong_tensor}"
    for kind, inputs in scan.makers:
        name = inputs[SIZE_INPUTS[kind]] if len(inputs) > SIZE_INPUTS[kind] else ""
        values = scan.constants.get(name, [])
        sizes = [max(1, abs(value)) for value in values]
        size = max(sizes, default=0) if kind == "Pad" else math.prod(sizes)
        if size > _MAX_CONSTANT_VALUES:
            return f"makes a tensor of {size} values by its operator {kind!r}"
    return ""
