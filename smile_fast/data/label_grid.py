"""Image and label map of a case lie on one grid, in whatever order of axes each file has."""

import numpy as np
from numpy.typing import NDArray

from smile_fast.data.dataset import RawCase
from smile_runtime.errors import InputError
from smile_runtime.io.grids import OtherGridError, onto_grid
from smile_runtime.io.nifti import Volume
from smile_runtime.io.nifti_geometry import NO_ORIENTATION


def labels_on_image(case: RawCase, image: Volume, label: Volume) -> NDArray[np.uint8]:  # [X, Y, Z]
    """The labels of a case in its image's order of axes: a view.

    Raises:
        InputError: the two lie on different grids.
    """
    try:
        return onto_grid(label.data, label.affine, image.affine, image.data.shape)
    except OtherGridError as error:
        if error.offset_mm is None:
            raise InputError(
                f"{case.label}: case {case.name} has an image of {_by(image.data.shape)} voxels and a label map of "
                f"{_by(error.shape)}; {resampling_advice(label)}"
            ) from None
        raise InputError(
            f"{case.label}: case {case.name} has a label map that lies {error.offset_mm:.3g} mm off its image "
            f"({error}); {resampling_advice(label)}"
        ) from None


def resampling_advice(label: Volume) -> str:
    """What to do with a label map on another grid; by a header that is wrong it would be resampled to anywhere."""
    if NO_ORIENTATION in label.warnings:
        return "its header does not say where it lies, export it again from the program that drew it"
    return "resample the label map onto the image's grid if a viewer shows the two in place, or export it again"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
