"""How often each value occurs in a label map."""

import numpy as np
import numpy.typing as npt

from smile_runtime.label_map import LABEL_VALUES


def slice_histograms(
    labels: npt.NDArray[np.uint8],  # [D, H, W]
) -> npt.NDArray[np.int64]:  # [D, 256]
    """Voxels of each label value in each axial slice; a slice at a time, because bincount makes int64 of its input.

    Args:
        labels: [D, H, W] uint8, in any memory order.
    """
    counts = np.zeros((len(labels), LABEL_VALUES), dtype=np.int64)
    for row, axial in zip(counts, labels, strict=True):
        row[:] = np.bincount(axial.ravel("K"), minlength=LABEL_VALUES)
    return counts
