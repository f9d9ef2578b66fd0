"""Label maps of cases in a folder of NIfTI files, in whatever orientation they lie there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.case_info import CaseInfo
from smile_fast.data.label_grid import resampling_advice
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.label_map import VOID
from smile_runtime.names import normal_name

LabelMap = Callable[[], NDArray[np.uint8]]
"""Gives the label map [D, H, W] of a case, in slices order, in whatever process it is called in."""


def label_files(cases: Sequence[str], folder: Path) -> dict[str, Path]:
    """Where the label map of each case is, or should be.

    Raises:
        InputError: the folder cannot be read, or two files have the name of one case.
    """
    from smile_runtime.io.scan_files import by_name, list_scans, refuse_dicom, stem

    try:
        files = by_name((stem(file.name) or "", file) for file in list_scans(folder)[0])
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({reason(error)}); give the folder of the label maps") from error
    if not files:
        refuse_dicom(folder)
    return {case: files.get(normal_name(case), folder / f"{case}.nii.gz") for case in cases}


@dataclass(frozen=True)
class FolderLabelMap:
    """A label map on the grid of a case, whatever its orientation.

    Attributes:
        path: the file. case: whose it should be. organs: the highest value that it may hold.
        by_rater: a human drew it, and may have called voxels void.
    """

    path: Path
    case: CaseInfo
    organs: int
    by_rater: bool = False

    def __call__(self) -> NDArray[np.uint8]:
        """Read it and bring it into slices order."""
        from smile_runtime.io.grids import OtherGridError, onto_grid
        from smile_runtime.io.nifti import read_labels

        volume = read_labels(self.path)
        try:
            labels = onto_grid(volume.data, volume.affine, np.array(self.case.affine), self.case.shape[::-1])
        except OtherGridError as error:
            done = "draw on" if self.by_rater else "predict"
            raise InputError(
                f"{volume.path}: lies on another grid than case {self.case.name} ({error}); {done} the case's own "
                f"image, or {resampling_advice(volume)}"
            ) from None
        slices = labels.transpose(2, 1, 0)  # [D, H, W]
        known = np.where(slices == VOID, 0, slices) if self.by_rater else slices
        if (highest := int(known.max(initial=0))) > self.organs:
            advice = f"give 0, these, and {VOID} for void" if self.by_rater else "predict with its model"
            raise InputError(f"{volume.path}: holds label {highest}, the run knows 1 to {self.organs}; {advice}")
        return np.ascontiguousarray(slices)
