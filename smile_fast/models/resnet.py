"""Dilated ResNets (18, 34, 50, 101) with the parameter names of the common ImageNet checkpoints."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, h, w] to [N, planes, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(x)) + shortcut))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 and a shortcut (ResNet-50 and -101)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, h, w] to [N, 4 planes, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.relu(self.bn3(self.conv3(x)) + shortcut))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


@dataclass(frozen=True)
class Variant:
    """Block type and number of blocks in each of the four stages."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]


VARIANTS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Feature extractor whose last stages trade stride for dilation.

    Args:
        name: one of `VARIANTS`.
        in_channels: channels of the input (neighbouring slices).
        output_stride: 8 or 16 input pixels per pixel of the features.
        width: channels of the first stage; 64 is the published network (and needed for its checkpoints).

    Source:
        He et al., "Deep Residual Learning", CVPR 2016; Chen et al., "Rethinking Atrous Convolution", 2017.
    """

    def __init__(self, name: str, in_channels: int, output_stride: int, width: int = 64) -> None:
        super().__init__()
        variant = VARIANTS[name]
        # Stages that would go past the output stride keep their resolution and dilate instead.
        strides, dilations = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}[output_stride]
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, previous_dilation = width, 1
        for stage, depth in enumerate(variant.depths):
            planes = width << stage
            blocks: list[nn.Module] = []
            for index in range(depth):
                # The first block of a dilated stage keeps the previous stage's dilation: its input was not dilated.
                dilation = previous_dilation if index == 0 else dilations[stage]
                stride = strides[stage] if index == 0 else 1
                blocks.append(variant.block(channels, planes, stride, dilation))
                channels = planes * variant.block.expansion
            previous_dilation = dilations[stage]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, stage)(x)
        return x
