"""Figure 4 of the paper without the predictions: what each round adds, and how right it is where the truth is hidden.

The weights that a round began with are not kept, so what the network predicted then cannot be drawn.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from smile_fast.supervision import State
from smile_fast.sweep.tables import write_csv
from smile_fast.training.rounds import existing_rounds, open_round
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path
from smile_runtime.label_map import PSEUDO_BIT

HEAD = ("round", "gamma", "organ", "added", "right", "hidden_truth", "precision", "recall")


def added_labels(run: Run) -> list[tuple[object, ...]]:
    """By round and organ: added voxels, those that are right, and the truth that is hidden; see `HEAD`.

    Precision and recall are over the training cases in which the organ is hidden; empty where they do not exist.
    """
    declarations, rows = run.declarations(), list[tuple[object, ...]]()
    for number in existing_rounds(run.rounds_path):
        stored = open_round(run.rounds_path, number)
        counts = np.zeros((len(run.organs), 3), np.int64)  # added, right, truth
        for case in stored.cases:
            pseudo, truth = stored.pseudo_labels(case), run.store.read_labels(case)
            for k, organ in enumerate(run.organs):
                if declarations[case][organ] is State.HIDDEN:
                    added, there = pseudo == (PSEUDO_BIT | (k + 1)), truth == k + 1
                    counts[k] += added.sum(), (added & there).sum(), there.sum()
        for organ, (added_voxels, right, drawn) in zip(run.organs, counts.tolist(), strict=True):
            precision = right / added_voxels if added_voxels else ""
            recall = right / drawn if drawn else ""
            rows.append((number, stored.round.gamma, organ, added_voxels, right, drawn, precision, recall))
    return rows


def draw_rounds(run: Run, out: Path) -> list[Path]:
    """Write figure4.csv and figure4.png: a column a round, added voxels over a slice, precision and recall below.

    Raises:
        InputError: the run has no round, or a file cannot be written.
    """
    numbers = existing_rounds(run.rounds_path)
    if not numbers:
        raise InputError(f"{run.path}: has no relabelling round to draw; name a smiler cell that is finished")
    rows = added_labels(run)
    overlays = [open_round(run.rounds_path, number) for number in numbers]
    case = max(overlays[-1].cases, key=lambda name: sum(each["kept"] for each in overlays[-1].cases[name].values()))
    last = overlays[-1].pseudo_labels(case)
    z = int(np.argmax(np.count_nonzero(last > PSEUDO_BIT, axis=(1, 2))))
    hu, truth = run.store.read_image(case, [z])[0], run.store.read_labels(case, [z])[0]
    figure = Figure(figsize=(3.2 * len(numbers), 6.2), layout="constrained")
    panels = figure.subplots(2, len(numbers), squeeze=False)
    low, high = run.config.model.window
    for column, stored in enumerate(overlays):
        above, below = panels[:, column]
        above.imshow(hu, cmap="gray", vmin=low, vmax=high)
        _overlay(above, stored.pseudo_labels(case, [z])[0], len(run.organs))
        hidden = [k + 1 for k, organ in enumerate(run.organs) if run.declarations()[case][organ] is State.HIDDEN]
        if (shown := np.isin(truth, hidden)).any():
            above.contour(shown, levels=[0.5], colors="white", linewidths=0.7)
        above.set_title(f"round {stored.round.number}, gamma {stored.round.gamma:.2f}")
        above.set_axis_off()
        own = [row for row in rows if row[0] == stored.round.number]
        places = np.arange(len(own))
        for shift, name, at in ((-0.2, "precision", 6), (0.2, "recall", 7)):
            below.bar(places + shift, [row[at] or 0 for row in own], 0.4, label=name)
        below.set_xticks(places, [str(row[2]) for row in own], rotation=30)
        below.set_ylim(0, 1)
    panels[1, 0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"Added labels, {case}, slice {z + 1}; white: hidden truth")
    path = out / "figure4.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    return [write_csv(out / "figure4.csv", HEAD, rows), path]


def _overlay(panel: Axes, pseudo: NDArray[np.uint8], organs: int) -> None:
    labels = np.where(pseudo > PSEUDO_BIT, pseudo.astype(int) - PSEUDO_BIT, 0)
    masked = np.ma.masked_equal(labels, 0)
    count = 10 if organs < 10 else 20  # colours, background included
    panel.imshow(masked, cmap=f"tab{count}", vmin=0, vmax=count - 1, alpha=0.7, interpolation="nearest")
