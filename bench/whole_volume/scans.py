"""Scans for the benchmark of whole volumes: real CT where it is at hand, and a phantom."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.machine import ROOT
from smile_fast.data.phantom import PhantomOptions, make_case
from smile_runtime.io.nifti import read_image
from smile_runtime.volume.preprocessing import to_slices

REAL = {"thorax": "ct_thorax_512", "abdomen": "ct_abdomen_3mm"}
PHANTOM = PhantomOptions(size=256, slices=48)


def data_folder() -> Path:
    """The folder of real CT data: $SMILE_FAST_DATA, or ../shared/data seen from the repository."""
    return Path(os.environ.get("SMILE_FAST_DATA", ROOT.parent / "shared" / "data"))


def write_scan(source: str, slices: int | None, path: Path) -> None:
    """Write the middle slices of a volume as a scan, in the order in which networks see them.

    Scripts that people write around a network take a file's order for granted, so it has to be right for them.
    Skips the benchmark if the real CT is not there.
    """
    if source == "phantom":
        volume, _, grid = make_case(PHANTOM, 1, 0)
        spacing = grid.spacing
    else:
        file = data_folder() / REAL[source] / "ct.nii.gz"
        if not file.is_file():
            pytest.skip(f"no real CT at {file} (set SMILE_FAST_DATA)")
        scan = read_image(file)
        volume, geometry = to_slices(scan.data, scan.affine)
        spacing = geometry.spacing
    taken = len(volume) if slices is None else min(slices, len(volume))
    first = (len(volume) - taken) // 2
    save(volume[first : first + taken], spacing, path)


def save(slices: NDArray[np.int16], spacing: Sequence[float], path: Path) -> None:
    """Write slices [D, H, W] as a scan, in the order in which networks see them; spacing [3] in mm."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(slices.transpose(2, 1, 0)), affine), path)


def load(path: Path) -> NDArray[np.uint8]:
    """A label map's voxels [X, Y, Z]."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)
