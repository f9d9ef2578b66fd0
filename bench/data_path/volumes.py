"""Cohorts of real size: phantoms and real CT as an nnU-Net folder and as the store that is made of it."""

import json
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.comparison import Conditions
from bench.data_path.workloads import Volumes
from bench.machine import ROOT
from bench.whole_volume.scans import REAL, data_folder
from smile_fast.data.dataset import RawDataset
from smile_fast.data.phantom import PhantomOptions, make_case
from smile_fast.data.prepare import prepare
from smile_fast.data.store import Store
from smile_runtime.io.nifti import read_image, write_image, write_labels
from smile_runtime.volume.preprocessing import to_slices

FOLDER = ROOT / "build" / "data-path"  # kept between runs of one checkout: a phantom of this size takes half a minute
BRIGHT = 150  # HU: what a scan without a label map has as its organ
MIRRORED: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))  # axes of [D, H, W], by the number of the case


def dataset(volumes: Volumes, conditions: Conditions, folder: Path) -> RawDataset:
    """The raw folder of a cohort; made where it is not there.

    Skips the benchmark if the real CT is not there.

    Args:
        volumes: of the cohort.
        conditions: a shrunk cohort is not kept.
        folder: where such a one goes.
    """
    folder = folder / "raw" if conditions.shrink > 1 else FOLDER
    ready = folder / f"{volumes.source}-{volumes.cases}x{volumes.size}x{volumes.slices}"
    if not ready.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as unfinished:
            _write(volumes, Path(unfinished) / ready.name)
            with suppress(FileExistsError):  # another process was faster
                (Path(unfinished) / ready.name).rename(ready)
    return RawDataset.open(ready)


def store(raw: RawDataset, folder: Path) -> Store:
    """The store of a raw folder."""
    return prepare(raw, folder, workers=1).store


def scan_of(raw: Path, case: str) -> Path:
    """The CT of a case of a raw folder."""
    return raw / "imagesTr" / f"{case}_0000.nii.gz"


def labels_of(raw: Path, case: str) -> Path:
    """The label map of a case of a raw folder."""
    return raw / "labelsTr" / f"{case}.nii.gz"


def _write(volumes: Volumes, raw: Path) -> None:
    image, labels, (z, y, x) = _scan(volumes)
    affine = np.diag([-x, -y, z, 1.0])  # axis codes LPS: a file's slices are those that networks see
    organs = tuple(f"organ {value}" for value in range(1, int(labels.max()) + 1))
    for sub in ("imagesTr", "labelsTr"):
        (raw / sub).mkdir(parents=True)
    for case, axes in zip(volumes.names, MIRRORED, strict=False):
        write_image(scan_of(raw, case), np.flip(image, axes).transpose(2, 1, 0), affine)
        write_labels(labels_of(raw, case), np.flip(labels, axes).transpose(2, 1, 0), affine)
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{organ: value for value, organ in enumerate(organs, 1)}},
        "numTraining": volumes.cases,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    rows = [f"{case},{organ},annotated\n" for case in volumes.names for organ in organs]
    (raw / "annotations.csv").write_text("case,organ,state\n" + "".join(rows), encoding="utf-8")


def _scan(volumes: Volumes) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float]]:
    """Image and labels [D, H, W], and the spacing (z, y, x) in mm."""
    if volumes.source == "phantom":
        image, labels, grid = make_case(PhantomOptions(size=volumes.size, slices=volumes.slices), 0, 0)
        return image, labels, grid.spacing
    file = data_folder() / REAL[volumes.source] / "ct.nii.gz"
    if not file.is_file():
        pytest.skip(f"no real CT at {file} (set SMILE_FAST_DATA)")
    scan = read_image(file)
    slices, geometry = to_slices(scan.data, scan.affine)
    first = (len(slices) - volumes.slices) // 2
    image = np.ascontiguousarray(slices[first : first + volumes.slices, : volumes.size, : volumes.size])
    z, y, x = geometry.spacing
    return image, (image > BRIGHT).astype(np.uint8), (float(z), float(y), float(x))
