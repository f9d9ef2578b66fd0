"""Keep the largest connected component of an organ (needs scipy, the extra ``clean``)."""

import importlib.util
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smile_runtime.errors import InputError
from smile_runtime.names import normal_name


def chosen_values(choice: str | None, organs: Sequence[str]) -> tuple[int, ...]:
    """Label values of the organs that keep their largest component only.

    Args:
        choice: ``all``, names of organs with commas between them, or None for none.
        organs: Names; label value k + 1 is organs[k].

    Raises:
        InputError: The model has no such organ, or scipy is not installed.
    """
    if choice is None:
        return ()
    values = {normal_name(organ): value for value, organ in enumerate(organs, 1)}
    names = list(values) if choice == "all" else [normal_name(name) for name in choice.split(",")]
    for name in names:
        if name not in values:
            raise InputError(
                f"largest component of {name!r}: the model has no such organ; name all, or some of {', '.join(organs)}"
            )
    if importlib.util.find_spec("scipy") is None:
        raise InputError(
            "largest component: scipy is not installed; install it, or smile-fast-runtime with the extra [clean]"
        )
    return tuple(sorted({values[name] for name in names}))


def keep_largest_components(
    labels: npt.NDArray[np.uint8],  # [D, H, W]
    values: Collection[int],
) -> None:
    """Set all components of some organs but the largest one of each to 0, in place.

    Voxels are connected by their faces; of two equally large components the first one stays. Beside the label
    map an organ's bounding box is held in memory, 5 bytes a voxel of it, up to 0.8 more for one in many small parts.

    Args:
        labels: [D, H, W] uint8; changed.
        values: Label values.
    """
    if not values:
        return
    from scipy import ndimage  # optional, and not needed for anything else

    boxes = ndimage.find_objects(labels, max_label=max(values))
    for value in values:
        if (box := boxes[value - 1]) is None:
            continue
        part = labels[box]
        components, count = ndimage.label(part == value)  # int32 numbers, 0 outside
        if count < 2:
            continue
        largest = _sizes(components, count).argmax()
        for label, numbers in zip(part, components, strict=True):  # not all at once: two masks more would be held
            label[(numbers != 0) & (numbers != largest)] = 0


def _sizes(components: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """Voxels of each component, [count + 1]; the outside counts 0."""
    sizes = np.zeros(count + 1, np.int64)
    for numbers in components:  # not all at once: bincount makes int64 of what it counts
        sizes += np.bincount(numbers.ravel(), minlength=count + 1)
    sizes[0] = 0
    return sizes
