"""The README's table of the way from files to training steps: its rows, its columns and the sentence below it."""

from collections.abc import Iterator

from bench.data_path import names
from bench.measure import COSTS
from bench.records import Figures

LOADER = {
    "loader/phantom": "phantoms, 4 x 512 x 512 x 100",
    "loader/thorax": "CT, 4 x 512 x 512 x 100",
}
LOADER_PEERS = {
    names.UNCHECKED: "no checksum",
    names.ZARR: "zarr v3",
    names.ZARR_BEST: "the same, blosc lz4",
    names.CHUNKS: "nnU-Net, 3D chunks",
    names.CHUNKS_INT16: "the same in int16",
    names.CHUNKS_2D: "nnU-Net, 2D chunks",
    names.NIFTI: "open .nii.gz",
    names.PERSISTENT: "MONAI PersistentDataset",
}
LOADER_CORNER = "a random axial slice of a cohort on disk, verified, CPU time"
READ_AHEAD = {"read_ahead/phantom": "8 patches of 256 x 256"}
READ_AHEAD_PEERS = {names.DATALOADER: "torch DataLoader"}
READ_AHEAD_CORNER = "a batch made by 2 processes"
PREPARE = {
    "prepare/phantom": "phantom, 512 x 512 x 100",
    "prepare/thorax": "CT, 512 x 512 x 100",
}
PREPARE_PEERS = {names.BY_HAND: "nibabel, numpy and blosc2", names.BY_HAND_NNUNET: "the same, as nnU-Net stores it"}
PREPARE_CORNER = "`.nii.gz` to the store, CPU time of one process"
TRAIN_LOOP = {"train_loop/resnet18": "ResNet-18 at stride 16, 8 x 256 x 256"}
TRAIN_LOOP_PEERS = {
    names.BARE: "forward and backward",
    names.BARE_STEP: "these and the optimizer",
    names.IN_MEMORY: "our step, batch in memory",
    names.BATCH: "a batch alone",
    names.AUGMENTATION: "augmentation alone",
    names.LOSS: "loss alone",
}
TRAIN_LOOP_CORNER = "a step of `smile-fast train`"
COHORTS = ("cohort/1000", "cohort/10000")
WORKLOADS = {*LOADER, *READ_AHEAD, *PREPARE, *TRAIN_LOOP, *COHORTS}


def sentences(measured: dict[str, Figures]) -> Iterator[str]:
    """What is no time: slices a second, and how costs grow with the cases."""
    rates = [(title, measured[name][COSTS]) for name, title in LOADER.items() if name in measured]
    if rates:
        yield (
            "Slices a second and core: "
            + "; ".join(f"{costs[names.SLICES_PER_SECOND]:,.0f} ({title})" for title, costs in rates)
            + "."
        )
    for name in COHORTS:
        if name in measured:
            costs = measured[name][COSTS]
            opened, trained = (costs[key] / 1e3 for key in (names.OPENED_BYTES, names.TRAINING_BYTES))
            yield (
                f"A store of {measured[name]['cases']:,} cases of 100 slices and 13 organs opens in "
                f"{costs[names.OPENING]:.2f} s of CPU time and takes {opened:.1f} kB a case; the first batch comes "
                f"{costs[names.FIRST_BATCH]:.2f} s later, a training takes {trained:.1f} kB a case, at its peak "
                f"{costs[names.TRAINING_GROWTH]:.2f} times the memory that 10 cases take."
            )
