"""HU in, low-resolution logits out: windowing, backbone and head as one module."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smile_fast.models.config import ModelConfig
from smile_fast.models.deeplab import DeepLabHead
from smile_fast.models.resnet import ResNet

# Mean and standard deviation of a windowed slice; near the averages of the ImageNet statistics over RGB,
# so that converted checkpoints see inputs of the size that they were trained on.
_MEAN, _STD = 0.45, 0.225


AIR = -1024  # HU


def resample_slices(
    hu: Tensor,  # [N, C, H, W] HU, any real dtype
    scan_stride: int,
    output_stride: int,
) -> Tensor:  # [N, C, h * output_stride, w * output_stride]
    """Bring slices to the network's pixels: h = ceil(H / scan_stride), and what lies beyond the slice is air.

    Bilinear, and over as many pixels as one of the network covers where that is larger (a triangle filter). Slices that
    have the network's pixels come back as they are, whatever their size.

    Args:
        hu: slices of a scan.
        scan_stride: pixels of the scan per pixel of the logits, see `smile_runtime.volume.pixel_size`.
        output_stride: of the network.
    """
    if scan_stride == output_stride:
        return hu
    height, width = hu.shape[-2:]
    low = [-(-size // scan_stride) for size in (height, width)]
    below, right = (n * scan_stride - size for n, size in zip(low, (height, width), strict=True))
    padded = F.pad(hu.float(), (0, right, 0, below), value=AIR)
    size = [n * output_stride for n in low]
    return F.interpolate(padded, size=size, mode="bilinear", align_corners=False, antialias=True)


class Segmenter(nn.Module):
    """DeepLab v3 on CT slices in HU, at the network's pixel size.

    The logits keep the network's own resolution: the loss (`masked_bce_upsampled`), the label map and the
    exported graph each upsample them by themselves.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.organs:
            raise ValueError("config.organs is empty: a network has one output an organ")
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
        # A low pixel must cover `output_stride` high pixels whatever the size: without the padding a slice of 122 rows
        # would be stretched to the 128 that its 16 rows of logits stand for, and organs would move by several mm.
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
        scan_stride: int | None = None,
    ) -> Tensor:  # [N, M, H, W]
        """Bilinear upsampling of low-resolution logits back to the grid of the slices, padding cut off.

        `scan_stride` is that of the scan, whose grid it is; None for the network's own pixels.
        """
        scale = float(scan_stride or self.config.output_stride)
        full = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
        return full[..., : size[0], : size[1]]

    def label_map(
        self,
        logits: Tensor,  # [N, M, h, w]
        size: tuple[int, int],
        scan_stride: int | None = None,
    ) -> Tensor:  # [N, H, W] uint8
        """0 or the organ's label value per pixel.

        Sigmoid: the organ with the highest probability among those above 0.5; softmax: the best class.
        """
        full = self.upsample(logits.float(), size, scan_stride)
        if self.config.head == "softmax":
            return full.argmax(dim=1).to(torch.uint8)
        best, organ = full.max(dim=1)
        return torch.where(best > 0, organ + 1, 0).to(torch.uint8)

    def probabilities(
        self,
        logits: Tensor,  # [N, M, h, w]
        size: tuple[int, int],
        scan_stride: int | None = None,
    ) -> Tensor:  # [N, K, H, W]
        """Probability of each organ at each pixel, background left out."""
        full = self.upsample(logits.float(), size, scan_stride)
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
