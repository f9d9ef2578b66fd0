"""What is measured of whole volumes, and what everybody is called."""

from dataclasses import dataclass, replace

from bench.comparison import CPU, CUDA, OURS

SESSION, NO_CROP, FP32 = "bare session", f"{OURS}, --no-crop", f"{OURS}, fp32"
EAGER, CHANNELS_LAST, MONAI = "torch eager", "torch eager, channels_last", "MONAI sliding window"
COMPILED = "torch.compile"
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
        precision: of ours, "fp32", "fp16" or "int8"; beside int8, ours in fp32 takes part. torch computes float32
            without TF32, or under autocast to float16.
    """

    backbone: str
    source: str = "thorax"
    slices: int | None = None
    organs: int = 3
    width: int = 64
    by_hand: bool = True
    processes: bool = False
    precision: str = "fp32"
    devices: tuple[str, ...] = (CPU,)


WORKLOADS = {
    "thorax-resnet50": Workload("resnet50", slices=4),
    "thorax-resnet18": Workload("resnet18", slices=12),
    "int8-resnet50": Workload("resnet50", slices=6, by_hand=False, precision="int8"),
    "int8-resnet18": Workload("resnet18", slices=12, by_hand=False, precision="int8"),
    "phantom-resnet18": Workload("resnet18", "phantom", slices=24),
    "abdomen-resnet18": Workload("resnet18", "abdomen", slices=48),
    # Where the network is small, memory and the time around it are what is left.
    "memory-K3": Workload("resnet18", slices=75, organs=3, width=8, by_hand=False, processes=True),
    "memory-K100": Workload("resnet18", slices=75, organs=100, width=8, by_hand=False, processes=True),
    "gpu-fp32": Workload("resnet50", "phantom", devices=(CUDA,)),
    "gpu-fp16": Workload("resnet50", "phantom", precision="fp16", devices=(CUDA,)),
    "gpu-fp32-resnet18": Workload("resnet18", "phantom", devices=(CUDA,)),
    "gpu-fp16-resnet18": Workload("resnet18", "phantom", precision="fp16", devices=(CUDA,)),
}


@dataclass(frozen=True)
class Folder:
    """Synthetic scans of size x size x slices voxels through one network in fp16, on a GPU; one scan is one alone."""

    backbone: str
    volumes: int
    size: int = 512
    slices: int = 60
    width: int = 64
    devices: tuple[str, ...] = (CUDA,)


FOLDERS = {"folder-fp16": Folder("resnet18", 14), "alone-fp16": Folder("resnet18", 1)}
LONG = {
    "thorax-resnet18": Workload("resnet18", by_hand=False),
    "thorax-resnet50": Workload("resnet50", by_hand=False),
}
SMOKE = ("phantom-resnet18", "int8-resnet18", "memory-K3")
"""Those that a smoke run takes; the others differ from them in size alone."""


def small_folder(workload: Folder) -> Folder:
    """A folder for a smoke run."""
    return replace(workload, volumes=min(workload.volumes, 2), size=64, slices=8, width=8)


def small(workload: Workload) -> Workload:
    """A workload for a smoke run, without real data."""
    return replace(workload, backbone="resnet18", source="phantom", slices=2, width=8)
