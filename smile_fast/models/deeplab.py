"""The DeepLab v3 head: atrous spatial pyramid pooling with image pooling, then a classifier."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class ImagePooling(nn.Sequential):
    """Global context: the mean feature of the slice, given back to every pixel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, h, w] to [N, outputs, h, w]."""
        pooled = x
        for layer in self:
            pooled = layer(pooled)
        return pooled.expand(-1, -1, x.shape[-2], x.shape[-1])


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, one dilated 3x3 per rate, and image pooling, side by side.

    Source:
        Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3.
    """

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int]) -> None:
        super().__init__()
        branches: list[nn.Module] = [_conv_bn_relu(inputs, outputs, 1)]
        branches += [_conv_bn_relu(inputs, outputs, 3, rate) for rate in rates]
        branches.append(ImagePooling(inputs, outputs))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*_conv_bn_relu(outputs * len(branches), outputs, 1), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, h, w] to [N, outputs, h, w]."""
        return cast(Tensor, self.project(torch.cat([branch(x) for branch in self.convs], dim=1)))


class DeepLabHead(nn.Sequential):
    """ASPP, a 3x3 convolution, and one 1x1 classifier per channel of the logits."""

    def __init__(self, inputs: int, channels: int, rates: Sequence[int], outputs: int) -> None:
        super().__init__(
            ASPP(inputs, channels, rates),
            *_conv_bn_relu(channels, channels, 3),
            nn.Conv2d(channels, outputs, 1),
        )
