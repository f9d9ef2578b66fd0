"""HU in, low-resolution logits out: windowing, backbone and head as one module."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smile_fast.models.deeplab import DeepLabHead
from smile_fast.models.resnet import VARIANTS, ResNet
from smile_runtime.label_map import MAX_ORGANS

Head = Literal["sigmoid", "softmax"]

# Mean and standard deviation of a windowed slice; near the averages of the ImageNet statistics over RGB,
# so that converted checkpoints see inputs of the size that they were trained on.
_MEAN, _STD = 0.45, 0.225


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build the network again.

    Args:
        organs: K organ names, in the order of their label values 1..K.
        backbone: "resnet18", "resnet34", "resnet50" or "resnet101".
        output_stride: 8 or 16.
        channels: slices that the network sees at once (odd; 1 is plain 2D, 3 and more are 2.5D).
        window: lowest and highest HU that the network can tell apart.
        head: "sigmoid" (K independent organs) or "softmax" (K + 1 classes, channel 0 is background).
        width: channels of the first ResNet stage; 64 is the published network.
        rates: atrous rates of the ASPP; empty means the published ones for the output stride.
    """

    organs: tuple[str, ...]
    backbone: str = "resnet50"
    output_stride: int = 8
    channels: int = 1
    window: tuple[float, float] = (-160.0, 240.0)
    head: Head = "sigmoid"
    width: int = 64
    rates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        wanted = {
            "organs": 1 <= len(self.organs) <= MAX_ORGANS,
            "backbone": self.backbone in VARIANTS,
            "output_stride": self.output_stride in (8, 16),
            "channels": self.channels >= 1 and self.channels % 2 == 1,
            "window": self.window[0] < self.window[1],
            "head": self.head in ("sigmoid", "softmax"),
            "width": self.width >= 8,
            "rates": all(rate >= 1 for rate in self.rates),
        }
        for field, holds in wanted.items():
            if not holds:
                raise ValueError(f"ModelConfig.{field} = {getattr(self, field)!r} is not usable")

    @property
    def outputs(self) -> int:
        """Planes of logits: K, or K + 1 for the softmax."""
        return len(self.organs) + (self.head == "softmax")

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_json`."""
        known = dict(fields)
        for name in ("organs", "window", "rates"):
            known[name] = tuple(known[name])
        return cls(**known)


class Segmenter(nn.Module):
    """DeepLab v3 on CT slices in HU.

    The logits keep the network's own resolution: the loss (`masked_bce_upsampled`), the label map and the
    exported graph each upsample them by themselves.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rates = config.rates or tuple(r * 16 // config.output_stride for r in (6, 12, 18))
        self.backbone = ResNet(config.backbone, config.channels, config.output_stride, config.width)
        self.classifier = DeepLabHead(self.backbone.out_channels, 4 * config.width, rates, config.outputs)

    def forward(
        self,
        hu: Tensor,  # [N, C, H, W] HU, any real dtype
    ) -> Tensor:  # [N, M, h, w]
        """Low-resolution logits; M = K (sigmoid) or K + 1 (softmax), h = ceil(H / output_stride)."""
        low, high = self.config.window
        windowed = ((hu.float() - low) / (high - low)).clamp(0.0, 1.0)
        # A feature pixel must cover `output_stride` input pixels whatever the size: without the padding a slice of 122
        # rows would be stretched to the 128 that its 16 feature rows stand for, and organs would move by several mm.
        stride, height, width = self.config.output_stride, hu.shape[-2], hu.shape[-1]
        # Written without negative numbers: the exported graph divides towards zero.
        below, right = ((n + stride - 1) // stride * stride - n for n in (height, width))
        windowed = F.pad(windowed, (0, right, 0, below))  # 0 is air
        features = self.backbone((windowed - _MEAN) / _STD)
        return cast(Tensor, self.classifier(features))

    def upsample(
        self,
        logits: Tensor,  # [N, M, h, w]
        size: tuple[int, int],
    ) -> Tensor:  # [N, M, H, W]
        """Bilinear upsampling of low-resolution logits back to the grid of the slices, padding cut off."""
        scale = float(self.config.output_stride)
        full = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
        return full[..., : size[0], : size[1]]

    def label_map(
        self,
        logits: Tensor,  # [N, M, h, w]
        size: tuple[int, int],
    ) -> Tensor:  # [N, H, W] uint8
        """0 or the organ's label value per pixel.

        Sigmoid: the organ with the highest probability among those above 0.5; softmax: the best class.
        """
        full = self.upsample(logits.float(), size)
        if self.config.head == "softmax":
            return full.argmax(dim=1).to(torch.uint8)
        best, organ = full.max(dim=1)
        return torch.where(best > 0, organ + 1, 0).to(torch.uint8)

    def probabilities(
        self,
        logits: Tensor,  # [N, M, h, w]
        size: tuple[int, int],
    ) -> Tensor:  # [N, K, H, W]
        """Probability of each organ at each pixel, background left out."""
        full = self.upsample(logits.float(), size)
        return full.softmax(dim=1)[:, 1:] if self.config.head == "softmax" else full.sigmoid()

    @torch.no_grad()
    def set_prior(self, prior: Sequence[float]) -> None:
        """Start the classifier at the organs' shares of the voxels instead of at one half.

        Without it the first hundreds of steps only teach the network that almost everything is background,
        and a small organ may never come back from there.

        Args:
            prior: [K] share of the known voxels that belong to each organ, in (0, 1).

        Source:
            Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 3.3.
        """
        bias = cast(nn.Conv2d, self.classifier[-1]).bias
        assert bias is not None
        shares = [min(max(float(p), 1e-4), 0.5) for p in prior]
        if self.config.head == "softmax":
            background = max(1.0 - sum(shares), 1e-4)
            bias.copy_(torch.tensor([math.log(p) for p in (background, *shares)]))
        else:
            bias.copy_(torch.tensor([math.log(p / (1.0 - p)) for p in shares]))
