"""The graph around a network that has a pixel size: any scan's slices in, a label map on the scan's own grid out.

Written in ONNX, because the sizes in it follow from the values of an input, which torch.export cannot express. It
computes what `resample_slices`, `Segmenter.label_map` and `Segmenter.probabilities` do: every export's certificate
compares them.
"""

import onnx
import onnx.compose
import onnx.parser

from smile_fast.models import ModelConfig
from smile_fast.models.segmenter import AIR
from smile_runtime.model.exported import INPUT
from smile_runtime.volume.pixel_size import scan_stride_limits

NETWORK_OUTPUT = "logits"
_PREFIX = "network_"  # of all names within the network
_NETWORK_HU = _PREFIX + INPUT

# Cast <to>: 1 float, 2 uint8, 7 int64, 10 float16.
_GRAPH = """
<ir_version: 10, opset_import: [{opsets}]>
smile_fast (int16[N, {slices}, H, W] hu, double[2] pixel_spacing)
    => (uint8[N, H, W] labels, {dtype}[N, {organs}, H, W] probabilities)
<double[1] pixel_of_logits = {{ {pixel_of_logits} }},
 double smallest = {{ {smallest} }}, double largest = {{ {largest} }},
 int64[1] one = {{ 1 }}, int64[1] output_stride = {{ {output_stride} }}, float air = {{ {air} }},
 int64[6] no_pads = {{ 0, 0, 0, 0, 0, 0 }}, int64[2] origin = {{ 0, 0 }}, int64[2] slice_axes = {{ 2, 3 }},
 int64[1] channel_axis = {{ 1 }}, int64[1] channels = {{ {channels} }}, int64 first_organ = {{ 1 }},
 int64 no_organ = {{ 0 }}, float half = {{ 0 }}, float byte = {{ 255 }}>
{{
    pixel_area = ReduceProd (pixel_spacing)
    pixel_side = Sqrt (pixel_area)
    ratio = Div (pixel_of_logits, pixel_side)
    whole_ratio = Round (ratio)
    limited_ratio = Clip (whole_ratio, smallest, largest)
    scan_stride = Cast <to = 7> (limited_ratio)

    size = Shape <start = 2> (hu)
    size_and_stride = Add (size, scan_stride)
    size_and_rest = Sub (size_and_stride, one)
    low_size = Div (size_and_rest, scan_stride)
    filled_size = Mul (low_size, scan_stride)
    filling = Sub (filled_size, size)
    pads = Concat <axis = 0> (no_pads, filling)
    hu_float = Cast <to = 1> (hu)
    filled_hu = Pad (hu_float, pads, air)
    images_and_slices = Shape <end = 2> (hu)
    network_size = Mul (low_size, output_stride)
    network_shape = Concat <axis = 0> (images_and_slices, network_size)
    {network_hu} = Resize <mode = "linear", antialias = 1> (filled_hu, , , network_shape)

    images_and_channels = Shape <end = 2> ({network_logits})
    filled_shape = Concat <axis = 0> (images_and_channels, filled_size)
    filled_logits = Resize <mode = "linear"> ({network_logits}, , , filled_shape)
    full_logits = Slice (filled_logits, origin, size, slice_axes)
    best = ArgMax <axis = 1, keepdims = 0> (full_logits)
    {decide}
    {encode}
}}
"""
# `half` is the logit of the probability 0.5.
_DECIDE = {
    "sigmoid": """
    highest = ReduceMax <keepdims = 0> (full_logits, channel_axis)
    is_organ = Greater (highest, half)
    best_organ = Add (best, first_organ)
    label = Where (is_organ, best_organ, no_organ)
    labels = Cast <to = 2> (label)
    shares = Sigmoid (full_logits)
    """,
    "softmax": """
    labels = Cast <to = 2> (best)
    shares_of_all = Softmax <axis = 1> (full_logits)
    shares = Slice (shares_of_all, one, channels, channel_axis)
    """,
}
_ENCODE = {
    "float32": ("float", "probabilities = Identity (shares)"),
    "float16": ("float16", "probabilities = Cast <to = 10> (shares)"),
    "uint8": (
        "uint8",
        "scaled = Mul (shares, byte)\n    rounded = Round (scaled)\n    probabilities = Cast <to = 2> (rounded)",
    ),
}


def any_pixels(network: onnx.ModelProto, config: ModelConfig, probabilities: str) -> onnx.ModelProto:
    """Put resampling, upsampling and decision around a network.

    Args:
        network: from `INPUT`, float32 [N, C, h, w] HU in the network's pixels, to `NETWORK_OUTPUT`, [N, M, l, m].
        config: its settings, with a pixel size.
        probabilities: dtype of the second output.

    Returns:
        A model with the inputs `hu` and `pixel_spacing` (y, x) in mm, and the outputs `labels` and `probabilities`.
    """
    assert config.pixel_mm is not None
    smallest, largest = scan_stride_limits(config.output_stride)
    dtype, encode = _ENCODE[probabilities]
    text = _GRAPH.format(
        opsets=", ".join(f'"{opset.domain}" : {opset.version}' for opset in network.opset_import),
        slices=config.channels,
        dtype=dtype,
        organs=len(config.organs),
        pixel_of_logits=float(config.output_stride * config.pixel_mm),
        smallest=float(smallest),
        largest=float(largest),
        output_stride=config.output_stride,
        air=float(AIR),
        channels=config.outputs,
        network_hu=_NETWORK_HU,
        network_logits=_PREFIX + NETWORK_OUTPUT,
        decide=_DECIDE[config.head],
        encode=encode,
    )
    model: onnx.ModelProto = onnx.parser.parse_model(text)
    inner = onnx.compose.add_prefix(network, _PREFIX).graph
    nodes = list(model.graph.node)
    (front,) = [number for number, node in enumerate(nodes, start=1) if _NETWORK_HU in node.output]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:front], *inner.node, *nodes[front:]])
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]  # not every head needs all
    del model.graph.initializer[:]
    model.graph.initializer.extend([*constants, *inner.initializer])
    return model
