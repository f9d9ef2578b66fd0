"""The same network in float16 for GPUs, and in int8 for CPUs."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from smile_fast.data.store import Store
from smile_fast.exporter.certificate import computed_box
from smile_fast.exporter.graph import quiet, strip
from smile_fast.models import Segmenter
from smile_fast.models.deeplab import ASPP
from smile_runtime.model.exported import INPUT, PIXEL_SPACING
from smile_runtime.volume.preprocessing import BodyRule, slice_context

Precision = Literal["fp32", "fp16", "int8"]
CALIBRATION_CASES = 16
CALIBRATION_SLICES = 4  # of each case
_QUANTIZED = ("Conv", "Relu", "Add", "MaxPool", "Concat")


class Cast(nn.Module):
    """Change the dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Cast x."""
        return x.to(self.dtype)


def half_network(model: Segmenter) -> Segmenter:
    """Convert a network whose BatchNorms are folded to float16 where that is safe, in place.

    Float32 remain: windowing, because HU up to 3000 have a step of 2 in float16; the mean over the slice, whose sum can
    pass 65504; the classifier, upsampling and decision, because rounded logits tie and cancel where organs meet.
    Outside, nothing changes: HU in, float32 logits out.

    Args:
        model: what `fold_batchnorm` returned.

    Returns:
        The same network.
    """
    head = cast(nn.Sequential, model.classifier)
    aspp = cast(ASPP, head[0])
    pooling = cast(nn.Sequential, aspp.convs[-1])
    pooling[0] = nn.Sequential(Cast(torch.float32), pooling[0], Cast(torch.float16))
    for layer in list(head)[:-1]:
        layer.half()
    head[-1] = nn.Sequential(Cast(torch.float32), head[-1])
    backbone = nn.Sequential(Cast(torch.float16), model.backbone.half())
    setattr(model, "backbone", backbone)  # noqa: B010  its declared type is a ResNet
    return model


@dataclass(frozen=True)
class Calibration:
    """Slices of training cases whose activations set the int8 scales.

    Attributes:
        cases: their names. slices: of each case [n, C, H, W] int16. pixels: of each case (y, x), mm.
    """

    cases: list[str]
    slices: list[NDArray[np.int16]]
    pixels: list[tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """What the certificate says of it."""
        return {"cases": self.cases, "slices": sum(len(hu) for hu in self.slices), "ranges": "smallest and largest"}


def calibration_slices(store: Store, cases: list[str], channels: int, rule: BodyRule | None) -> Calibration:
    """Choose slices of up to 16 cases, spread evenly over the cohort and over each body, and cut to it.

    Args:
        store: the run's store.
        cases: the run's training cases, never others.
        channels: slices seen at once.
        rule: by which production leaves the air out; None leaves nothing out.
    """
    chosen = cases[:: -(-len(cases) // CALIBRATION_CASES)]
    slices, pixels = [], []
    for case in chosen:
        box = computed_box(store, case, rule)
        depth, parts = len(box.slices), range(CALIBRATION_SLICES)
        index = sorted({box.slices[(2 * part + 1) * depth // (2 * CALIBRATION_SLICES)] for part in parts})
        slices.append(slice_context(box.crop(store.read_image(case)), index, channels))
        pixels.append(store.cases[case].spacing[1:])
    return Calibration(chosen, slices, pixels)


def quantize(proto: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """Quantise the convolutions of a float32 model to int8 (QDQ, weights per channel).

    Float32 remain: windowing, the mean over the slice, the classifier, upsampling and decision. The classifier costs
    nothing, and quantised it triples the loss of Dice of the smallest organ. Weights use 7 of the 8 bits: CPUs without
    VNNI add two products in 16 bits, which 8 bits would saturate, and a certificate must hold on other machines too.

    Args:
        proto: what `to_onnx` returned.
        calibration: what sets the scales of the activations.

    Returns:
        Another model with the same inputs and outputs.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(proto, source)  # a model given as an object comes back with its tensors in another file
        quantize_static(
            source,
            target,
            _Slices(calibration, {entry.name for entry in proto.graph.input}),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_quantize=nodes_to_quantize(proto),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantized = onnx.load_model(target)
    strip(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def nodes_to_quantize(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes from the first convolution up to the classifier, which is the last one."""
    nodes = proto.graph.node
    convolutions = [number for number, node in enumerate(nodes) if node.op_type == "Conv"]
    return [node.name for node in nodes[convolutions[0] : convolutions[-1]] if node.op_type in _QUANTIZED]


class _Slices(CalibrationDataReader):  # type: ignore[misc]
    """Slices one by one, as onnxruntime asks for them."""

    def __init__(self, calibration: Calibration, inputs: set[str]) -> None:
        self._feeds = (
            {name: values for name, values in feed.items() if name in inputs}
            for hu, pixels in zip(calibration.slices, calibration.pixels, strict=True)
            for feed in ({INPUT: hu[n : n + 1], PIXEL_SPACING: np.array(pixels)} for n in range(len(hu)))
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)
