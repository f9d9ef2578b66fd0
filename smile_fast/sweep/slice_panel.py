"""One slice with organs in colours, and what the colours mean: the same in every figure of a sweep."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

_OPAQUE = 0.6


def show_slice(
    panel: Axes,
    hu: NDArray[np.int16],  # [H, W]
    labels: NDArray[np.uint8],  # [H, W]
    organs: Sequence[str],
    window: tuple[float, float],
    title: str,
) -> None:
    """Draw organs (value k + 1 for organ k) over a CT slice, shown from window[0] to window[1] HU."""
    panel.imshow(hu, cmap="gray", vmin=window[0], vmax=window[1])
    count = _colours(organs)
    shown = np.ma.masked_equal(labels, 0)
    panel.imshow(shown, cmap=f"tab{count}", vmin=0, vmax=count - 1, alpha=_OPAQUE, interpolation="nearest")
    panel.set_title(title)
    panel.set_axis_off()


def name_colours(figure: Figure, organs: Sequence[str]) -> None:
    """Write beneath a figure which colour is which organ."""
    count = _colours(organs)
    colours = colormaps[f"tab{count}"]
    patches = [
        Patch(color=colours(min(value, count - 1)), alpha=_OPAQUE, label=organ)
        for value, organ in enumerate(organs, start=1)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(organs), 8), frameon=False)


def _colours(organs: Sequence[str]) -> int:
    return 10 if len(organs) < 10 else 20  # background included
