"""One self-contained HTML page about a sweep: methods against the share of missing annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import smile_fast
from smile_fast.report.figures import sweep_chart
from smile_fast.report.methods import preset_sentence
from smile_fast.report.palette import organ_colours
from smile_fast.report.rendering import render
from smile_fast.report.sweep_curves import SweepCurves, read_curves, what_to_see
from smile_fast.sweep.pairs import MEAN
from smile_fast.sweep.summary import SUMMARY
from smile_runtime.io.files import atomic_path, refuse_overwrite


@dataclass(frozen=True)
class SweepChart:
    """The curves of one organ, or of their mean: SVG as a data URI, and what to see in it."""

    organ: str
    picture: str
    sentence: str


def write_sweep_report(folder: Path, out: Path) -> None:
    """Write the page of a sweep.

    Args:
        folder: what `smile-fast sweep` wrote, finished or not.
        out: HTML file to write, atomically.

    Raises:
        InputError: the folder has no scores, or the page cannot be written, or only over a file of the sweep.
    """
    refuse_overwrite(out, (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"))
    with atomic_path(out) as path:
        path.write_text(sweep_page(read_curves(folder), folder.resolve().name), encoding="utf-8")


def sweep_page(sweep: SweepCurves, name: str) -> str:
    """Return the page of a sweep as HTML."""
    colours = organ_colours(sweep.methods)
    means = sweep.estimates(MEAN)
    return render(
        "sweep.html",
        {
            "name": name,
            "sweep": sweep,
            "colours": colours,
            "methods": {method: preset_sentence(method) for method in sweep.methods},
            "charts": _charts(sweep, [MEAN, *sweep.organs] if len(sweep.organs) > 1 else sweep.organs),
            "means": means,
            "differences": {organ: sweep.differences(organ) for organ in (MEAN, *sweep.organs)},
            "missing": sweep.missing(),
            "file": SUMMARY,
            "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "version": smile_fast.__version__,
        },
    )


def _charts(sweep: SweepCurves, organs: Sequence[str]) -> list[SweepChart]:
    colours = organ_colours(sweep.methods)
    charts = []
    for organ in organs:
        estimates = sweep.estimates(organ)
        picture = sweep_chart(organ, estimates, colours)
        charts.append(SweepChart(organ, picture, what_to_see(organ, estimates)))
    return charts
