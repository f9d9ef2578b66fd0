"""Figure 3 of the paper: Dice against the share of missing annotations, a panel an organ and one for the mean."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smile_fast.sweep.statistics import Row
from smile_runtime.io.files import atomic_path

_COLUMNS = 4
_PANEL = (3.2, 2.9)  # inches
_STYLES = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.", "*:", "<-", ">--", "h-.")  # told apart without colour


def draw_figure3(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write figure3.png and figure3.svg: one line a method, its bars are one standard deviation over the folds.

    Raises:
        InputError: they cannot be written.
    """
    organs = list(dict.fromkeys(row.organ for row in rows))  # the mean is each method's last
    organs.sort(key=lambda organ: organ == "mean")
    methods = list(dict.fromkeys(row.method for row in rows))
    columns = min(_COLUMNS, len(organs))
    lines = -(-len(organs) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for panel, organ in zip(panels, organs, strict=False):
        _draw_panel(panel, organ, [row for row in rows if row.organ == organ], methods)
    for panel in panels[len(organs) :]:
        panel.set_axis_off()
    figure.supxlabel("missing annotations (%)")
    figure.supylabel("Dice (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False)
    paths = [out / "figure3.png", out / "figure3.svg"]
    for path in paths:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=200, format=path.suffix[1:])
    return paths


def _draw_panel(panel: Axes, organ: str, rows: Sequence[Row], methods: Sequence[str]) -> None:
    for number, method in enumerate(methods):
        own = sorted((row for row in rows if row.method == method), key=lambda row: row.alpha)
        panel.errorbar(
            [100 * row.alpha for row in own],
            [100 * row.mean for row in own],
            [100 * row.std for row in own],
            fmt=_STYLES[number % len(_STYLES)],
            color=f"C{number % 10}",
            label=method,
            markersize=4,
            linewidth=1.3,
            capsize=2,
        )
    panel.set_title(organ)
    panel.set_xlim(-4, 96)
    panel.set_ylim(0, 100)
    panel.grid(alpha=0.3)
