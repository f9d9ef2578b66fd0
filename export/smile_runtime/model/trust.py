"""A model file is data: what is refused before onnxruntime sees it."""

from pathlib import Path

from smile_runtime.errors import InputError
from smile_runtime.model.card import METADATA_KEY, ModelCard
from smile_runtime.model.onnx_scan import Scan, WireError, scan_onnx

# Standard operators that compute tensors from tensors, as networks for images need them: no control flow, no
# sequences, no strings, no randomness, no generators (ConstantOfShape, OneHot, Range, Tile).
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


def trusted_card(content: bytes, path: Path) -> ModelCard:
    """Check a whole model file without running anything of it.

    Args:
        content: The file.
        path: Its name, for messages.

    Returns:
        The file's card.

    Raises:
        InputError: It is no ONNX file or damaged; it keeps tensors in other files; it holds operators, functions,
            training, sparse tensors or metadata that no exported model has; a tensor lies about its size; it has no
            card, or a wrong one.

    What the file computes is not bounded by any check: sizes may follow from the scan's. See README, "What is refused".
    """
    try:
        scan = scan_onnx(content)
    except WireError as error:
        raise InputError(f"{path}: not an ONNX file, or damaged or cut short ({error}); export it again") from error
    if not scan.has_graph:
        raise InputError(f"{path}: not an ONNX file, it holds no graph; give a model exported by smile-fast")
    if scan.external_data:
        raise InputError(f"{path}: keeps tensors in other files, which is not allowed; export it as one file")
    cards = [value for key, value in scan.metadata if key == METADATA_KEY]
    if len(cards) != 1:
        raise InputError(f"{path}: an ONNX file without a model card; give one that `smile-fast export` wrote")
    if foreign := _foreign_part(scan):
        raise InputError(f"{path}: {foreign}; export it again, `smile-fast export` does not write such a file")
    if scan.wrong_tensor:
        raise InputError(f"{path}: damaged, its {scan.wrong_tensor}; export it again")
    return ModelCard.from_json(cards[0], source=str(path))


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
