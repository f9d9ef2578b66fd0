"""Figure 5 of the paper: a held-out slice, its truth and the methods' predictions side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from smile_fast.sweep.slice_panel import name_colours, show_slice
from smile_fast.training.inference import predict_labels
from smile_fast.training.run import Run
from smile_runtime.io.files import atomic_path


def draw_predictions(runs: Mapping[str, Run], out: Path) -> Path:
    """Write figure5.png: the slice of the first held-out case that shows most organ voxels.

    Args:
        runs: by the title of its picture a trained run; all of one fold.
        out: folder.

    Raises:
        InputError: a run has no network, or the file cannot be written.
    """
    first = next(iter(runs.values()))
    case = first.cases("test")[0]
    truth = first.store.read_labels(case)
    inside = (truth > 0) & (truth <= len(first.organs))
    z = int(np.argmax(np.count_nonzero(inside, axis=(1, 2))))
    hu = first.store.read_image(case)
    pictures = {"truth": np.where(inside[z], truth[z], 0)}
    for title, run in runs.items():
        box, spacing = run.store.body_box(case, run.config.body), run.store.cases[case].spacing
        pictures[title] = predict_labels(run.load_model(), hu, box=box, spacing=spacing)[z]
    figure = Figure(figsize=(3.2 * len(pictures), 3.8), layout="constrained")
    for panel, (title, labels) in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures.items(), strict=True
    ):
        show_slice(panel, hu[z], labels, first.organs, first.config.model.window, title)
    name_colours(figure, first.organs)
    figure.suptitle(f"{case}, slice {z + 1}")
    path = out / "figure5.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    return path
