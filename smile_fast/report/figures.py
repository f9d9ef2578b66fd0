"""The report's charts, as SVG data URIs. Text is drawn as paths, so that every machine shows what was checked."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from smile_fast.evaluation import Evaluation, PairScore
from smile_fast.report.collect import Curve, Curves
from smile_fast.report.palette import INK, MUTED
from smile_fast.report.sweep_curves import Estimates
from smile_fast.sweep.statistics import Row
from smile_fast.training.curriculum.findings import RoundRow
from smile_fast.training.curriculum.ranges import OrganRange

WIDTH = 11.2  # inches at 100 dots: the page's column
SMALL = (3.7, 2.6)  # inches of a chart that shares its row with two others, and has a phone's width for itself
MARKERS = "osD^vP*X"  # a second sign of a line beside its colour
ROW = 0.25  # inches a line of the Dice chart
BAND = "#DDE5EC"
STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "svg.hashsalt": "smile-fast",  # same numbers, same bytes
    "svg.fonttype": "path",
}


def dice_chart(
    evaluations: Mapping[str, Evaluation],
    organs: Sequence[str],
    colours: Mapping[str, str],
) -> str:
    """Draw every case's Dice as a dot and their mean as a bar, one line per organ and run.

    Args:
        evaluations: run name -> scores.
        organs: in the order of the page.
        colours: organ -> #RRGGBB.

    Returns:
        SVG as a data URI.
    """
    lines = [(organ, name) for organ in organs for name in evaluations]
    gap = 0.6
    positions = [index + gap * (index // len(evaluations)) for index in range(len(lines))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, ROW * (positions[-1] + 1) + 0.75), layout="constrained")
        axes = figure.add_subplot()
        jitter = np.random.default_rng(0)
        for position, (organ, name) in zip(positions, lines, strict=True):
            pairs = [pair for pair in evaluations[name].pairs if pair.organ == organ and pair.dice is not None]
            _dice_line(axes, position, pairs, colours[organ], jitter)
        axes.set_yticks(positions, [f"{organ}, {name}" if len(evaluations) > 1 else organ for organ, name in lines])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(positions[-1] + 0.7, -0.7)
        axes.set_xlim(-0.02, 1.08)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel("Dice (dot: one case, bar: mean)")
        axes.grid(axis="x", color="#E3E7EB", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        return _svg(figure)


def training_chart(curves: Curves, organs: Sequence[str], colours: Mapping[str, str]) -> str | None:
    """Draw the loss and, if there was a validation, its Dice; dotted lines mark where a round began.

    Returns:
        SVG as a data URI; None when nothing was recorded.
    """
    validated = any(curve.values for curve in curves.validation.values())
    panels = [name for name, there in (("loss", bool(curves.loss.values)), ("validation", validated)) if there]
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        for index, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), index)
            if panel == "loss":
                _loss_panel(axes, curves, organs, colours)
            else:
                _validation_panel(axes, curves, organs, colours)
            _mark_rounds(axes, curves)
            axes.set_xlabel("iteration")
            axes.set_xlim(0, 1.02 * max(curves.iterations, 1))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(axis="y", color="#E3E7EB", linewidth=0.8)
            axes.set_axisbelow(True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        return _svg(figure)


def volume_chart(rows: Sequence[RoundRow], annotated: OrganRange, colour: str) -> str:
    """Draw how much the rounds of a run found of one organ: a dot a case, their median as a line.

    Args:
        rows: the organ's line of every round.
        annotated: what annotated cases have of it; a band.
        colour: #RRGGBB.

    Returns:
        SVG as a data URI.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.add_subplot()
        if annotated.cases:
            axes.axhspan(annotated.low_ml, annotated.high_ml, color=BAND, linewidth=0, label="annotated cases")
            axes.axhline(annotated.high_ml, color=MUTED, linewidth=0.8)
            axes.axhline(annotated.low_ml, color=MUTED, linewidth=0.8)
        numbers = [row.number for row in rows]
        jitter = np.random.default_rng(0)
        for row in rows:
            places = row.number + jitter.uniform(-0.1, 0.1, len(row.volumes_ml))
            axes.scatter(places, row.volumes_ml, s=14, color=colour, alpha=0.55, linewidth=0, zorder=3)
        axes.plot(numbers, [row.median_ml for row in rows], color=colour, linewidth=2, marker="D", label="median case")
        axes.set_title(rows[0].organ)
        axes.set_xticks(numbers, [f"round {number}" for number in numbers])
        axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("found in a case, ml")
        axes.legend(loc="best", frameon=False, fontsize=8.5)
        return _svg(figure)


def sweep_chart(organ: str, estimates: Estimates, colours: Mapping[str, str]) -> str:
    """Draw the Dice of methods over the share of missing annotations, with intervals as shades.

    Args:
        organ: title.
        estimates: method -> alpha -> what it reaches; a method of one alpha among several is a dashed line.
        colours: method -> #RRGGBB.

    Returns:
        SVG as a data URI.
    """
    alphas = {alpha for own in estimates.values() for alpha in own}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.add_subplot()
        for (method, own), marker in zip(estimates.items(), cycle(MARKERS)):
            if len(own) == 1 and len(alphas) > 1:
                (estimate,) = own.values()
                axes.axhline(estimate.mean, color=colours[method], linestyle="--", linewidth=1.4)
                continue
            _sweep_line(axes, own, colours[method], marker)
        axes.set_title(organ)
        axes.set_xlabel("α, share of annotations missing")
        axes.set_ylabel("Dice")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", color="#E3E7EB", linewidth=0.8)
        axes.set_axisbelow(True)
        return _svg(figure)


def _sweep_line(axes: Axes, own: Mapping[float, Row], colour: str, marker: str) -> None:
    alphas = sorted(own)
    low, high = [own[alpha].low for alpha in alphas], [own[alpha].high for alpha in alphas]
    axes.fill_between(alphas, low, high, color=colour, alpha=0.15, linewidth=0)
    means = [own[alpha].mean for alpha in alphas]
    axes.plot(alphas, means, color=colour, linewidth=1.8, marker=marker, markersize=4)


def _dice_line(
    axes: Axes, position: float, pairs: Sequence[PairScore], colour: str, jitter: np.random.Generator
) -> None:
    dice = np.array([pair.dice for pair in pairs], dtype=float)
    if len(dice) == 0:
        axes.text(0.0, position, "not scored", color=MUTED, va="center", fontsize=8.5)
        return
    mean = float(dice.mean())
    axes.barh(position, mean, height=0.62, color=colour, alpha=0.28, linewidth=0)
    axes.plot([mean, mean], [position - 0.31, position + 0.31], color=colour, linewidth=2.2, solid_capstyle="butt")
    spread = jitter.uniform(-0.16, 0.16, size=len(dice))
    axes.scatter(dice, position + spread, s=24, color=colour, edgecolor="white", linewidth=0.6, zorder=3)
    axes.text(1.08, position, f"{mean:.2f}", ha="right", va="center", fontweight="bold", fontsize=9.5)


def _loss_panel(axes: Axes, curves: Curves, organs: Sequence[str], colours: Mapping[str, str]) -> None:
    axes.set_title("Loss")
    for organ in organs:
        curve = curves.organ_loss.get(organ)
        if curve is not None and curve.values:
            axes.plot(curve.iterations, _smooth(curve), color=colours[organ], linewidth=1.4, label=organ)
    axes.plot(curves.loss.iterations, curves.loss.values, color=INK, linewidth=0.7, alpha=0.25)
    axes.plot(curves.loss.iterations, _smooth(curves.loss), color=INK, linewidth=2.0, label="total")
    shown = [value for curve in (curves.loss, *curves.organ_loss.values()) for value in curve.values]
    if min(shown) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())


def _validation_panel(axes: Axes, curves: Curves, organs: Sequence[str], colours: Mapping[str, str]) -> None:
    axes.set_title("Dice on the validation cases")
    for organ in organs:
        curve = curves.validation.get(organ)
        if curve is not None and curve.values:
            axes.plot(
                curve.iterations,
                curve.values,
                color=colours[organ],
                linewidth=1.6,
                marker="o",
                markersize=3,
                label=organ,
            )
    axes.set_ylim(-0.02, 1.02)


def _mark_rounds(axes: Axes, curves: Curves) -> None:
    for number, start in curves.round_starts.items():
        axes.axvline(start, color=MUTED, linewidth=1.0, linestyle=":")
        axes.annotate(
            f"round {number}",
            (start, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -1),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=MUTED,
        )


def _smooth(curve: Curve) -> list[float]:
    """Centred running mean over 5 % of the points; the ends average what is there."""
    values = np.asarray(curve.values, dtype=float)
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return [float(mean) for mean in (sums[last] - sums[first]) / (last - first)]


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
