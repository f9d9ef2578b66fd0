"""How two label maps overlap: counted in one pass for all organs, and said as Dice."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smile_runtime.label_map import LABEL_VALUES


def joint_histogram(
    first: NDArray[np.uint8],  # [D, H, W]
    second: NDArray[np.uint8],  # [D, H, W]
) -> NDArray[np.int64]:  # [256, 256]
    """Count the voxels by (value in the first, value in the second): every organ's overlap from one pass."""
    joint = np.zeros(LABEL_VALUES * LABEL_VALUES, dtype=np.int64)
    for one, other in zip(first, second, strict=True):  # bincount widens to int64: a slice at a time
        joint += np.bincount((one.astype(np.uint16) << 8 | other).ravel(), minlength=joint.size)
    return joint.reshape(LABEL_VALUES, LABEL_VALUES)


def dice(both: ArrayLike, first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Dice of two sets of voxels A and B: 2 |A and B| / (|A| + |B|).

    Args:
        both: voxels of A and B, whole numbers of any shape.
        first: voxels of A, of a shape that fits.
        second: voxels of B, likewise.

    Returns:
        [*shape] in 0..1; NaN where both sets are empty: there is no overlap to measure.
    """
    total = np.add(first, second)
    found = np.full(np.broadcast_shapes(np.shape(both), np.shape(total)), np.nan)
    np.divide(np.multiply(2, both), total, out=found, where=np.greater(total, 0))
    return found


def organ_dice(
    joint: NDArray[np.int64],  # [256, 256]
    value: int,
) -> float | None:
    """Dice of one label value of two label maps, given their `joint_histogram`; None if neither has a voxel of it."""
    found = float(dice(joint[value, value], joint[value].sum(), joint[:, value].sum()))
    return None if np.isnan(found) else found
