"""What is measured of whole volumes, and what everybody is called."""

from dataclasses import dataclass, replace

SUITE, LONG_SUITE = "whole_volume", "whole_volume_long"
OURS = "ours"
SESSION, NO_CROP, FP32 = "bare session", "ours, --no-crop", "ours, fp32"
EAGER, CHANNELS_LAST, MONAI = "torch eager", "torch eager, channels_last", "MONAI sliding window"
FEWER_PIXELS = "pixels / computed pixels"
BYTES_A_VOXEL = "peak bytes a voxel beyond the session"
IMPORT, HELP = "import of the runtime, s", "smile-predict --help, s"


@dataclass(frozen=True)
class Workload:
    """Slices of one volume through one network, in 2D.

    Attributes:
        backbone: at output stride 16. source: "phantom", or a real CT of `scans`.
        slices: how many, from the middle; all if None. organs: K. width: of the network; 64 is ResNet's own.
        by_hand: whether torch and MONAI take part. processes: whether start-up and memory are measured.
        int8: whether ours is quantised, and ours in fp32 takes part.
    """

    backbone: str
    source: str = "thorax"
    slices: int | None = None
    organs: int = 3
    width: int = 64
    by_hand: bool = True
    processes: bool = False
    int8: bool = False


WORKLOADS = {
    "thorax-resnet50": Workload("resnet50", slices=4),
    "thorax-resnet18": Workload("resnet18", slices=12),
    "int8-resnet50": Workload("resnet50", slices=6, by_hand=False, int8=True),
    "int8-resnet18": Workload("resnet18", slices=12, by_hand=False, int8=True),
    "phantom-resnet18": Workload("resnet18", "phantom", slices=24),
    "abdomen-resnet18": Workload("resnet18", "abdomen", slices=48),
    # Where the network is small, memory and the time around it are what is left.
    "memory-K3": Workload("resnet18", slices=75, organs=3, width=8, by_hand=False, processes=True),
    "memory-K100": Workload("resnet18", slices=75, organs=100, width=8, by_hand=False, processes=True),
}
LONG = {
    "thorax-resnet18": Workload("resnet18", by_hand=False),
    "thorax-resnet50": Workload("resnet50", by_hand=False),
}
NAMES = [f"{SUITE}/{name}" for name in WORKLOADS]
"""All workloads, as "suite/workload"."""
LONG_NAMES = [f"{LONG_SUITE}/{name}" for name in LONG]
"""Those that take minutes each, and run only where they are asked for."""
SMOKE_NAMES = [f"{SUITE}/phantom-resnet18", f"{SUITE}/int8-resnet18", f"{SUITE}/memory-K3"]
"""Those that a smoke run takes; the others differ from them in size alone."""


def workload_of(name: str, *, smoke: bool = False) -> Workload:
    """A workload by its name; for a smoke run small, and without real data."""
    suite, _, workload = name.partition("/")
    found = (LONG if suite == LONG_SUITE else WORKLOADS)[workload]
    return replace(found, backbone="resnet18", source="phantom", slices=2, width=8) if smoke else found
