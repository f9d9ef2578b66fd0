"""The network with everything around it as one ONNX graph."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from smile_fast.exporter.pixels import NETWORK_OUTPUT, any_pixels
from smile_fast.models import Segmenter
from smile_runtime.model.exported import INPUT, LABELS, PROBABILITIES

OPSET = 20
Probabilities = Literal["uint8", "float16", "float32"]
_TRACED = (2, 96, 80)  # N, H, W; all different and above 1, which torch.export would take for constants


class ExportedGraph(nn.Module):
    """A network that sees every scan's own pixels, with what production needs around it, in standard operators only.

    Args:
        model: a trained network, or what `half_network` made of it.
        probabilities: dtype of the organs' probabilities.
    """

    def __init__(self, model: Segmenter, probabilities: Probabilities) -> None:
        super().__init__()
        self.model, self.probabilities = model, probabilities

    def forward(
        self,
        hu: Tensor,  # [N, C, H, W] int16
    ) -> tuple[Tensor, Tensor]:  # labels [N, H, W] uint8, probabilities [N, K, H, W]
        """Window, segment, upsample, decide."""
        logits = self.model(hu)
        size = (hu.shape[-2], hu.shape[-1])
        labels = self.model.label_map(logits, size)
        return labels, encode_probabilities(self.model.probabilities(logits, size), self.probabilities)


def encode_probabilities(
    probabilities: Tensor,  # [N, K, H, W] float32
    dtype: Probabilities,
) -> Tensor:  # [N, K, H, W]
    """Probabilities as they are stored: uint8 is round(255 p)."""
    if dtype == "uint8":
        return (probabilities * 255).round().to(torch.uint8)
    return probabilities.half() if dtype == "float16" else probabilities


def to_onnx(model: Segmenter, *, probabilities: Probabilities = "float32") -> onnx.ModelProto:
    """Convert a network to an ONNX model with weights inside and dynamic batch, height and width.

    One with a pixel size gets a second input, the pixels' spacing, and resampling around it, see `any_pixels`.

    Args:
        model: a network in evaluation mode without BatchNorms, as `fold_batchnorm` gives it.
        probabilities: dtype of the second output, which `without_probabilities` takes away again.

    Returns:
        The model, its outputs `labels` and `probabilities`.
    """
    if model.config.pixel_mm is None:
        proto = _traced(
            ExportedGraph(model, probabilities), model.config.channels, torch.int16, [LABELS, PROBABILITIES]
        )
    else:
        network = _traced(model, model.config.channels, torch.float32, [NETWORK_OUTPUT])
        proto = any_pixels(network, model.config, probabilities)
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _traced(graph: nn.Module, channels: int, dtype: torch.dtype, outputs: list[str]) -> onnx.ModelProto:
    """Convert a graph of slices [N, C, H, W]."""
    batch, height, width = _TRACED
    sizes = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    with quiet():
        program = torch.onnx.export(
            graph.eval(),
            (torch.zeros(batch, channels, height, width, dtype=dtype),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes=(sizes,),
            verbose=False,
        )
    assert program is not None  # it is None only when the exporter itself writes the file
    proto: onnx.ModelProto = program.model_proto
    return proto


def fold_batchnorm(model: Segmenter) -> Segmenter:
    """Copy a network in evaluation mode with every BatchNorm folded into the convolution before it.

    A module's children stand in the order in which they run, so the convolution is the child before. Done here and
    not left to the exporter: float16 weights are rounded once, after folding, and int8 scales see the folded weights.
    """
    folded = copy.deepcopy(model).eval()
    for module in folded.modules():
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                assert previous is not None
                assert isinstance(previous[1], nn.Conv2d)
                setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
                setattr(module, name, nn.Identity())
            previous = (name, child)
    return folded


def without_probabilities(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without its second output and without the nodes that only it needed."""
    reduced = onnx.ModelProto()
    reduced.CopyFrom(proto)
    graph = reduced.graph
    del graph.output[1:]
    needed, nodes = {LABELS}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    kept = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(reduced, full_check=True)
    return reduced


def strip(proto: onnx.ModelProto) -> None:
    """Remove what tools leave for debugging: stack traces would give away the folders of this machine."""
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    for output in proto.graph.output:
        output.ClearField("metadata_props")
    del proto.graph.value_info[:]
    used = {node.domain for node in proto.graph.node}
    for opset in [opset for opset in proto.opset_import if opset.domain not in used]:
        proto.opset_import.remove(opset)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, whose warnings are about torch's own deprecations and packages that are not used."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
