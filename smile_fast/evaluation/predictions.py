"""Where the label maps that are scored come from: a run's network, or a folder of NIfTI files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.arrays import pack_array, unpack_array
from smile_fast.data.case_info import CaseInfo
from smile_fast.data.label_grid import resampling_advice
from smile_fast.pipeline import in_order, worker_thread
from smile_runtime.errors import InputError
from smile_runtime.io.files import reason
from smile_runtime.label_map import VOID
from smile_runtime.names import normal_name

if TYPE_CHECKING:
    import torch

    from smile_fast.training.run import Run

LabelMap = Callable[[], NDArray[np.uint8]]
"""Gives the label map [D, H, W] of a case, in slices order, in whatever process it is called in."""


@contextmanager
def network_predictions(run: "Run", cases: Sequence[str], device: "torch.device | str") -> Iterator[Iterator[LabelMap]]:
    """Label maps of a run's network, case after case.

    While the device predicts a case, the next one is read, and the one before it is compressed, so that it takes little
    memory while it waits and little time to another process.

    Yields:
        The label maps, made as they are asked for.
    """
    from smile_fast.training import inference

    store, model = run.store, run.load_model().to(device)
    body = run.config.body  # what lies outside of the box is predicted as nothing: labels there count as missed
    with worker_thread("read") as reader, worker_thread("pack") as packer:
        images = in_order(store.read_image, cases, reader, ahead=1)
        queued = (
            inference.queue_labels(model, image, box=store.body_box(case, body), spacing=store.cases[case].spacing)
            for case, image in zip(cases, images, strict=True)
        )
        yield in_order(_packed, queued, packer, ahead=1)


def _packed(label_map: LabelMap) -> LabelMap:
    return partial(unpack_array, pack_array(label_map()))


def folder_predictions(run: "Run", cases: Sequence[str], folder: Path) -> Iterator[LabelMap]:
    """Label maps of a folder of NIfTI files named CASE.nii.gz; none is read before it is called for.

    Raises:
        InputError: see `prediction_files`.
    """
    known = run.store.cases
    return (
        FolderLabelMap(path, known[case], len(run.organs)) for case, path in prediction_files(cases, folder).items()
    )


def prediction_files(cases: Sequence[str], folder: Path) -> dict[str, Path]:
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
