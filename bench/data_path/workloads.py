"""What is measured on the way from files to training steps."""

from dataclasses import dataclass, field, replace

from bench.comparison import CPU

FEW = 10  # cases that growth is counted from


@dataclass(frozen=True)
class Volumes:
    """Volumes of size x size x slices voxels that are mirror images of one scan.

    Attributes:
        source: "phantom", or a real CT of `bench.whole_volume.scans`.
        size, slices: of a volume. cases: how many, at most four.
    """

    source: str = "phantom"
    size: int = 512
    slices: int = 100
    cases: int = 4

    @property
    def names(self) -> list[str]:
        """Of the cases."""
        return [f"case_{number}" for number in range(self.cases)]


@dataclass(frozen=True)
class Workload:
    """What is done with some volumes.

    Attributes:
        volumes: of the cohort. batch, patch: images and pixels of a batch of patches.
        workers: processes that make batches. width: of the network; 64 is ResNet's own.
    """

    volumes: Volumes = field(default_factory=Volumes)
    batch: int = 8
    patch: int = 256
    workers: int = 2
    width: int = 64
    devices: tuple[str, ...] = (CPU,)


@dataclass(frozen=True)
class Cohort:
    """An index of so many cases of 100 slices and 13 organs; their arrays are links to a few small ones."""

    cases: int
    slices: int = 100
    organs: int = 13
    devices: tuple[str, ...] = (CPU,)


ONE_CASE, ONE_REAL_CASE = Volumes(cases=1), Volumes("thorax", cases=1)
LOADER = {"phantom": Workload(), "thorax": Workload(Volumes("thorax"))}
READ_AHEAD = {"phantom": Workload()}
TRAIN_LOOP = {"resnet18": Workload(workers=1)}
PREPARE = {"phantom": Workload(ONE_CASE), "thorax": Workload(ONE_REAL_CASE)}
COHORT = {"10": Cohort(FEW), "1000": Cohort(1000), "10000": Cohort(10000)}
WORKLOADS = {
    "loader": LOADER,
    "read_ahead": READ_AHEAD,
    "train_loop": TRAIN_LOOP,
    "prepare": PREPARE,
    "cohort": COHORT,
}
IN_CPU_TIME = ("loader", "prepare", "cohort")
"""What computes in one thread, on files in the page cache: the clock of a machine that idles would say the same."""
AS_COMMANDS = ("read_ahead", "train_loop")
"""What shares the cores with the processes or the thread that make its batches."""
SMOKE = ("loader/phantom", "read_ahead/phantom", "train_loop/resnet18", "prepare/phantom", "cohort/1000")
"""Those that a smoke run takes; the others differ from them in size or in their scan."""


def small(workload: Workload | Cohort) -> Workload | Cohort:
    """A workload for a smoke run, without real data."""
    if isinstance(workload, Cohort):
        return replace(workload, cases=min(workload.cases, 3 * FEW))
    volumes = replace(workload.volumes, source="phantom", size=64, slices=12, cases=min(2, workload.volumes.cases))
    return replace(workload, volumes=volumes, batch=2, patch=32, width=16, workers=1)
