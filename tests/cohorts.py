"""Small nnU-Net raw datasets, made with nibabel alone so that they do not share a fault with the code under test."""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from smile_fast.data.folder_lock import LOCK

SHAPE = (20, 24, 8)  # X, Y, Z
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
ORGANS = ("liver", "pancreas", "spleen")
BOXES = {  # x, y, z
    "liver": (slice(1, 9), slice(2, 12), slice(1, 7)),
    "pancreas": (slice(10, 14), slice(8, 11), slice(2, 5)),
    "spleen": (slice(14, 19), slice(14, 20), slice(3, 6)),
}


class ThreadsForProcesses(ThreadPoolExecutor):
    """Stands for a pool of processes, in which a test cannot patch anything."""

    def __init__(self, workers: int, context: object, initializer: object, initargs: object) -> None:
        super().__init__(workers)


def write_nifti(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> None:
    nib.save(nib.Nifti1Image(data, affine), path)


def other_image() -> NDArray[np.int16]:
    """A CT that `make_cohort` does not write: with air in it."""
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) - 1000).astype(np.int16)


def label_map(without: Iterable[str] = (), organs: tuple[str, ...] = ORGANS) -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    for value, organ in enumerate(organs, start=1):
        if organ not in without:
            labels[BOXES[organ]] = value
    return labels


def make_cohort(
    path: Path,
    train: int = 3,
    test: int = 0,
    organs: tuple[str, ...] = ORGANS,
    without: Mapping[str, Iterable[str]] | None = None,
) -> Path:
    """Write cases case_00, case_01, ...; the held-out ones come last. `without`: case -> organs with no voxel."""
    rng = np.random.default_rng(0)
    for number in range(train + test):
        name, suffix = f"case_{number:02}", "Tr" if number < train else "Ts"
        for folder in ("images", "labels"):
            (path / (folder + suffix)).mkdir(parents=True, exist_ok=True)
        image = rng.normal(40, 30, SHAPE).astype(np.int16)
        write_nifti(path / f"images{suffix}" / f"{name}_0000.nii.gz", image)
        write_nifti(path / f"labels{suffix}" / f"{name}.nii.gz", label_map((without or {}).get(name, ()), organs))
    describe(path, {"background": 0} | {organ: value for value, organ in enumerate(organs, start=1)}, train)
    return path


def describe(path: Path, labels: object, train: int, **changes: object) -> None:
    described = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "numTraining": train,
        "file_ending": ".nii.gz",
    }
    (path / "dataset.json").write_text(json.dumps({**described, **changes}))


def annotate(path: Path, states: Mapping[tuple[str, str], str] | None = None, organs: tuple[str, ...] = ORGANS) -> Path:
    """Write annotations.csv: everything annotated, but for `states`: (case, organ) -> state."""
    cases = sorted(file.name.removesuffix(".nii.gz") for file in path.glob("labelsT*/*.nii.gz"))
    rows = [f"{case},{organ},{(states or {}).get((case, organ), 'annotated')}" for case in cases for organ in organs]
    file = path / "annotations.csv"
    file.write_text("\n".join(["case,organ,state", *rows]) + "\n")
    return file


def edit_label(path: Path, case: str, edit: Callable[[NDArray[np.uint8]], NDArray[np.generic] | None]) -> None:
    """Change the label map of a training case, in place or by returning another."""
    file = path / "labelsTr" / f"{case}.nii.gz"
    labels = np.asarray(nib.load(file).dataobj).astype(np.uint8)
    changed = edit(labels)
    write_nifti(file, labels if changed is None else changed)


def damage_array(path: Path) -> None:
    """Flip a byte of every 16 of a `.b2nd` file, so that every slice is damaged."""
    content = bytearray(path.read_bytes())
    content[::16] = bytes(255 - byte for byte in content[::16])
    path.write_bytes(content)


def array_file(folder: Path, name: str) -> Path:
    """The file of an array in a folder, whatever it contains."""
    (file,) = folder.glob(f"{name}-{'[0-9a-f]' * 16}.b2nd")
    return file


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the empty ones that stand for locks."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != LOCK)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def stored(path: Path) -> dict[str, bytes]:
    """Every file of a store; of a case.json without what it says of its sources' looks, and its seal."""
    files = tree(path)
    for name in files:
        if Path(name).name == "case.json":
            entry = json.loads(files[name])
            files[name] = json.dumps({key: entry[key] for key in entry if key not in ("seen", "sha256")}).encode()
    return files
