"""label_map_upsampled in Triton: every program decides the labels of some pixels of one image, channel by channel."""

import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.triton_kernels.interpolation import BLOCK, LAUNCH_OPTIONS, interpolate


@triton.jit
def label_map_upsampled_kernel(
    logits,  # [N, M, h, w]
    labels,  # [N, H, W] uint8
    channels, rows, columns, height, width, blocks,
    STRIDE: tl.constexpr, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decide BLOCK pixels: the highest channel, and with sigmoid heads only one above 0."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    best = tl.full([BLOCK], float("-inf") if SOFTMAX else 0.0, tl.float64)
    label = tl.zeros([BLOCK], tl.int32)
    for channel in range(channels):
        low = logits + (image * channels + channel) * rows * columns
        value = interpolate(low, pixel, inside, rows, columns, width, STRIDE)
        wins = value > best  # false for NaN, and for a tie with a lower label
        best = tl.where(wins, value, best)
        label = tl.where(wins, channel if SOFTMAX else channel + 1, label)
    tl.store(labels + image * height * width + pixel, label.to(tl.uint8), mask=inside)


def label_map_upsampled(
    logits: Tensor, images: int, channels: int, grid: tuple[int, int, int], softmax: bool, labels: Tensor
) -> None:
    """Write the results of `smile_fast.ops.reference.label_map_upsampled`; `grid` is (H, W, stride)."""
    height, width, stride = grid
    blocks = -(-height * width // BLOCK)
    if labels.numel():
        sizes = (channels, *logits.shape[2:], height, width, blocks)
        label_map_upsampled_kernel[(images * blocks,)](
            logits, labels, *sizes, STRIDE=stride, SOFTMAX=softmax, **LAUNCH_OPTIONS
        )
