"""Figure 4 of the paper: what a round predicts first and what it adds, and how right that is where truth is hidden."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from smile_fast.supervision import State
from smile_fast.sweep.slice_panel import name_colours, show_slice
from smile_fast.sweep.tables import write_csv
from smile_fast.training.curriculum.findings import read_pairs, round_rows
from smile_fast.training.inference import predict_labels
from smile_fast.training.rounds import StoredRound, existing_rounds, open_round
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
        pairs, background = read_pairs(run.store, declarations, stored, None, look_at_hidden=True)
        for row in round_rows(stored, pairs, background, run.organs):
            shares = ("" if share is None else share for share in (row.precision, row.recall))
            rows.append((number, row.gamma, row.organ, row.checked, row.correct, row.hidden, *shares))
    return rows


def draw_rounds(run: Run, out: Path) -> list[Path]:
    """Write figure4.csv and figure4.png: a column a round, and one for what the network predicts after the last.

    From above: the prediction at the start of the round (of runs with `keep_rounds`), the voxels that the round adds,
    and precision and recall of all that it adds.

    Raises:
        InputError: the run has no round, its kept weights are damaged, or a file cannot be written.
    """
    numbers = existing_rounds(run.rounds_path)
    if not numbers:
        raise InputError(f"{run.path}: has no relabelling round to draw; name a smiler cell that is finished")
    rows = added_labels(run)
    overlays = [open_round(run.rounds_path, number) for number in numbers]
    case, z = _most_hidden(run, overlays[-1])
    hu, truth = run.store.read_image(case), run.store.read_labels(case, [z])[0]
    predictions = _predictions(run, numbers, case, hu, z)
    figure = Figure(figsize=(3.0 * (len(numbers) + 1), 9.0 if predictions else 6.2), layout="constrained")
    panels = figure.subplots(3 if predictions else 2, len(numbers) + 1, squeeze=False)

    def show(panel: Axes, labels: NDArray[np.uint8], title: str) -> None:
        show_slice(panel, hu[z], labels, run.organs, run.config.model.window, title)

    for column, labels in enumerate(predictions):
        when = f"before round {numbers[column]}" if column < len(numbers) else "at the end"
        show(panels[0, column], labels, f"prediction {when}")
    for column, stored in enumerate(overlays):
        pseudo = stored.pseudo_labels(case, [z])[0]
        added = np.where(pseudo > PSEUDO_BIT, pseudo & ~np.uint8(PSEUDO_BIT), 0).astype(np.uint8)
        show(panels[-2, column], added, f"added in round {stored.round.number}, gamma {stored.round.gamma:.2f}")
        _bars(panels[-1, column], [row for row in rows if row[0] == stored.round.number])
    show(panels[-2, -1], np.where(truth <= len(run.organs), truth, 0), "truth")
    for panel in panels[:-1].ravel():  # those without a picture, too
        panel.set_axis_off()
    panels[-1, -1].set_axis_off()
    panels[-1, -1].legend(*panels[-1, 0].get_legend_handles_labels(), frameon=False, fontsize="small", loc="center")
    name_colours(figure, run.organs)
    hidden = ", ".join(organ for organ, state in run.declarations()[case].items() if state is State.HIDDEN)
    figure.suptitle(f"{case}, slice {z + 1}; hidden from training: {hidden or 'nothing'}")
    path = out / "figure4.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    return [write_csv(out / "figure4.csv", HEAD, rows), path]


def _most_hidden(run: Run, stored: StoredRound) -> tuple[str, int]:
    """The training case with the most hidden organs that a round has added to, and its slice with most of them."""
    declarations = run.declarations()

    def weight(case: str) -> tuple[int, int]:
        hidden = sum(state is State.HIDDEN for state in declarations[case].values())
        return hidden, sum(each["kept"] for each in stored.cases[case].values())

    case = max((name for name in stored.cases if stored.cases[name]), key=weight)
    values = [k + 1 for k, organ in enumerate(run.organs) if declarations[case][organ] is State.HIDDEN]
    shown = np.isin(run.store.read_labels(case), values) if values else stored.pseudo_labels(case) > PSEUDO_BIT
    return case, int(np.argmax(np.count_nonzero(shown, axis=(1, 2))))


def _predictions(run: Run, numbers: Sequence[int], case: str, hu: NDArray[np.int16], z: int) -> list[NDArray[np.uint8]]:
    """What the network makes of a slice at the start of each round, and at the end; nothing if that was not kept."""
    if not all(run.round_weights_path(number).exists() for number in numbers):
        return []
    box, spacing = run.store.body_box(case, run.config.body), run.store.cases[case].spacing
    networks = (run.load_model(number) for number in (*numbers, None))
    return [predict_labels(network, hu, box=box, spacing=spacing)[z] for network in networks]


def _bars(panel: Axes, rows: Sequence[tuple[object, ...]]) -> None:
    places = np.arange(len(rows))
    names = ("precision: share of the added that is right", "recall: share of the organ that was added")
    # Greys: colours are organs here.
    for shift, name, at, grey in ((-0.2, names[0], 6, "0.25"), (0.2, names[1], 7, "0.7")):
        panel.bar(places + shift, [float(str(row[at] or 0)) for row in rows], 0.4, label=name, color=grey)
    panel.set_xticks(places, [str(row[2]) for row in rows], rotation=30)
    panel.set_ylim(0, 1)
