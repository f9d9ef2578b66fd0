"""How often each value occurs in a label map."""

import numpy as np
import numpy.typing as npt

from smile_runtime.label_map import LABEL_VALUES

_FEW = 16  # values; from about 30 on bincount is no slower


def slice_histograms(
    labels: npt.NDArray[np.uint8],  # [D, H, W]
) -> npt.NDArray[np.int64]:  # [D, 256]
    """Voxels of each label value in each axial slice.

    A few values are counted by a comparison each, ten times as fast as by bincount, which makes int64 of its input.

    Args:
        labels: [D, H, W] uint8, in any memory order.
    """
    counts = np.zeros((len(labels), LABEL_VALUES), dtype=np.int64)
    for row, axial in zip(counts, labels, strict=True):
        flat = axial.ravel("K")
        highest = int(flat.max(initial=0))
        if highest > _FEW:
            row[:] = np.bincount(flat, minlength=LABEL_VALUES)
            continue
        for value in range(1, highest + 1):
            row[value] = np.count_nonzero(flat == value)
        row[0] = flat.size - row.sum()
    return counts
