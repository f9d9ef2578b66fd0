"""A model repository of NVIDIA's Triton Inference Server."""

import json
from collections.abc import Sequence
from pathlib import Path

from smile_runtime.model.exported import INPUT, LABELS, PIXEL_SPACING, PROBABILITIES, ModelCard

MAX_BATCH = 8  # slices of one inference
QUEUE_DELAY_US = 1000  # a slice takes 5 ms and more: waiting one for company costs little
_BATCHING = f"""\
dynamic_batching {{
  preferred_batch_size: [ {MAX_BATCH // 2}, {MAX_BATCH} ]
  max_queue_delay_microseconds: {QUEUE_DELAY_US}
}}
"""
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}
_KINDS = {"fp32": "KIND_AUTO", "fp16": "KIND_GPU", "int8": "KIND_CPU"}


def write_triton_model(folder: Path, content: bytes, card: ModelCard, probabilities: str | None, name: str) -> None:
    """Write a model's folder: config.pbtxt and version 1 of the file.

    Args:
        folder: an empty folder, to be called `name` in the repository.
        content: of the ONNX file.
        card: what the file says about itself.
        probabilities: dtype of its second output, if it has one.
        name: of the model.
    """
    (folder / "1").mkdir()
    (folder / "1" / "model.onnx").write_bytes(content)
    (folder / "config.pbtxt").write_text(triton_config(card, probabilities, name), encoding="utf-8")


def triton_config(card: ModelCard, probabilities: str | None, name: str) -> str:
    """The text of config.pbtxt; the batch is not listed in dims, -1 is any size.

    Source: the server's protobuf/model_config.proto, message ModelConfig.
    """
    # Slices of several requests may share a batch only where no other input tells them apart.
    batched = card.pixel_size is None
    images: tuple[int, ...] = () if batched else (-1,)
    inputs = [_tensor(INPUT, "TYPE_INT16", (*images, card.channels, -1, -1))]
    if not batched:
        inputs.append(_tensor(PIXEL_SPACING, "TYPE_FP64", (2,)))
    outputs = [_tensor(LABELS, "TYPE_UINT8", (*images, -1, -1))]
    if probabilities is not None:
        outputs.append(_tensor(PROBABILITIES, _TYPES[probabilities], (*images, len(card.organs), -1, -1)))
    return f"""\
name: {_quoted(name)}
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {MAX_BATCH if batched else 0}
input [
{f",{chr(10)}".join(inputs)}
]
output [
{f",{chr(10)}".join(outputs)}
]
instance_group [
  {{ count: 1 kind: {_KINDS[card.precision]} }}
]
{_BATCHING if batched else ""}parameters {{
  key: "organs"
  value: {{ string_value: {_quoted(json.dumps(card.organs))} }}
}}
parameters {{
  key: "orientation"
  value: {{ string_value: {_quoted(card.orientation)} }}
}}
parameters {{
  key: "body"
  value: {{ string_value: {_quoted(json.dumps(None if card.body is None else vars(card.body)))} }}
}}
parameters {{
  key: "pixels"
  value: {{ string_value: {_quoted(json.dumps(None if card.pixels is None else vars(card.pixels)))} }}
}}
parameters {{
  key: "window"
  value: {{ string_value: {_quoted(json.dumps(card.window))} }}
}}
"""


def _tensor(name: str, dtype: str, dims: Sequence[int]) -> str:
    return f"  {{\n    name: {_quoted(name)}\n    data_type: {dtype}\n    dims: [ {', '.join(map(str, dims))} ]\n  }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format; bytes outside of printable ASCII in octal."""
    escaped = "".join(
        f"\\{chr(byte)}" if byte in b'"\\' else chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
        for byte in text.encode("utf-8")
    )
    return f'"{escaped}"'
