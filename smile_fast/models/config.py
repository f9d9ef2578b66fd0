"""What the network is; read without torch, because the command line makes options of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from smile_fast.settings import Settings, documented, setting
from smile_runtime.label_map import MAX_ORGANS
from smile_runtime.volume.pixel_size import PIXEL_SIZES, scan_stride

_WIDEST = 1024  # far beyond what is of use; what torch cannot even name is a slip of the hand


@documented
@dataclass(frozen=True)
class ModelConfig(Settings):
    """Everything that is needed to build the network again."""

    organs: tuple[str, ...] = setting(
        (),
        "K organ names in the order of their label values 1..K, those of the store; empty until it is known",
        f"at most {MAX_ORGANS} names",
        lambda organs: len(organs) <= MAX_ORGANS,
        kind=str,
        count="+",
    )
    backbone: str = setting(
        "resnet50", "the dilated ResNet", group="network", choices=("resnet18", "resnet34", "resnet50", "resnet101")
    )
    output_stride: int = setting(8, "pixels of a slice per pixel of the logits", group="network", choices=(8, 16))
    width: int = setting(
        64,
        "channels of the first ResNet stage (64: the published network)",
        f"a multiple of 8, at most {_WIDEST}",
        lambda width: 8 <= width <= _WIDEST and width % 8 == 0,
        group="network",
    )
    rates: tuple[int, ...] = setting(
        (),
        "atrous rates of the ASPP (default: those published for the output stride)",
        f"positive numbers, at most {_WIDEST}",
        lambda rates: all(1 <= rate <= _WIDEST for rate in rates),
        group="network",
        kind=int,
        count="+",
        metavar="RATE",
    )
    channels: int = setting(
        1,
        "neighbouring slices that the network sees (1: plain 2D, 3 and more: 2.5D)",
        f"a positive odd number, less than {_WIDEST}",
        lambda channels: 1 <= channels < _WIDEST and channels % 2 == 1,
        group="network",
    )
    window: tuple[float, float] = setting(
        (-160.0, 240.0),
        "lowest and highest HU that the network can tell apart",
        "a lower and a higher HU",
        lambda window: -inf < window[0] < window[1] < inf,
        group="network",
        kind=float,
        count=2,
        metavar=("LOW", "HIGH"),
    )
    head: Literal["sigmoid", "softmax"] = setting(
        "sigmoid", "sigmoid (K independent organs) or softmax (K + 1 classes)", choices=("sigmoid", "softmax")
    )
    pixel_mm: float | None = setting(
        None,
        "mm a pixel that slices are brought to; none for every scan's own pixels",
        "{:g} to {:g} mm".format(*PIXEL_SIZES),
        lambda side: PIXEL_SIZES[0] <= side <= PIXEL_SIZES[1],
        kind=float,
    )

    def scan_stride(self, spacing: Sequence[float] | None) -> int:
        """Pixels of a scan per pixel of the logits, given its spacing (z, y, x) in mm; None for the network's own."""
        return self.output_stride if spacing is None else scan_stride(spacing[1:], self.pixel_mm, self.output_stride)

    @property
    def outputs(self) -> int:
        """Channels of the logits: K, or K + 1 for the softmax, whose channel 0 is background."""
        return len(self.organs) + (self.head == "softmax")
