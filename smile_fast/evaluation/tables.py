"""Scores as text: a row an organ, then the mean, sources, raters, and the worst pairs."""

from pathlib import Path

from smile_fast.evaluation.raters import RaterScores
from smile_fast.evaluation.results import Evaluation
from smile_fast.evaluation.scores import Outcome
from smile_fast.evaluation.summary import FalseAlarms, OrganScore, Spread, mean
from smile_fast.text_table import text_table

_COUNTED = (Outcome.SCORED, Outcome.MISSED, Outcome.NOT_DRAWN, Outcome.PARTLY_DRAWN)  # the others are the false alarms


def format_table(evaluation: Evaluation) -> str:
    """Return the evaluation as a plain text table, one row an organ, then the mean and the worst pairs."""
    surfaces = evaluation.nsd_tolerance_mm is not None
    head = ["organ", "Dice", "pooled"]
    if surfaces:
        head += [f"NSD {evaluation.nsd_tolerance_mm:g} mm", "HD95 mm"]
    head += ["volume", "median", "false alarms", *(outcome.value for outcome in _COUNTED)]
    rows = [head, *(_organ_cells(row, surfaces) for row in evaluation.organs)]
    of_surfaces = [format_number(evaluation.nsd), format_number(evaluation.hd95_mm, 1)] if surfaces else []
    alarms = [row.false_alarms for row in evaluation.organs]
    rows.append(
        [
            "mean of organs",
            format_number(evaluation.dice),
            format_number(mean(row.pooled_dice for row in evaluation.organs)),
            *of_surfaces,
            format_number(None),
            format_number(None),
            f"{sum(each.pairs for each in alarms)}/{sum(each.of for each in alarms)}",
            *(str(sum(row.outcomes[outcome.value] for row in evaluation.organs)) for outcome in _COUNTED),
        ]
    )
    lines = text_table(rows, rules=(1, len(rows) - 1))
    lines += [
        "",
        "Dice: mean over the pairs whose truth holds the organ (scored, missed). pooled, volume: Dice and predicted /",
        "true volume of all drawn pairs together; median: predicted/true of the median case. false alarms: pairs with",
        "a prediction / pairs without the organ, and the median volume of such predictions",
    ]
    if surfaces and any(pair.outcome is Outcome.MISSED for pair in evaluation.pairs):
        lines.append("A missed pair has Dice 0, NSD 0, and the diagonal of the volume as its HD95")
    lines += _source_lines(evaluation)
    if evaluation.raters is not None:
        lines += _rater_lines(evaluation.raters)
    if evaluation.worst:
        lines += ["", "lowest Dice:"]
        lines += [
            f"  {format_number(pair.dice)}  {pair.case}, {pair.organ}"
            + ("" if pair.outcome is Outcome.SCORED else f" ({pair.outcome.value})")
            for pair in evaluation.worst
        ]
    return "\n".join(lines)


def _organ_cells(row: OrganScore, surfaces: bool) -> list[str]:
    cells = [row.organ, format_spread(row.dice), format_number(row.pooled_dice)]
    if surfaces:
        cells += [format_spread(row.nsd), format_spread(row.hd95_mm, 1)]
    cells += [format_number(row.volume_ratio, 2), format_number(row.median_volume_ratio, 2)]
    return [*cells, format_alarms(row.false_alarms), *(str(row.outcomes[outcome.value]) for outcome in _COUNTED)]


def _source_lines(evaluation: Evaluation) -> list[str]:
    if not evaluation.sources:
        return []
    rows = [["source", "organ", "Dice", "pooled", "volume", "median", "false alarms", "pairs"]]
    rules = []
    for source in evaluation.sources:
        rules.append(len(rows))
        name = f"{source.source or 'not said'}, {source.cases} case{'s' * (source.cases != 1)}"
        for row in source.organs:
            ratios = [format_number(row.volume_ratio, 2), format_number(row.median_volume_ratio, 2)]
            scores = [format_spread(row.dice), format_number(row.pooled_dice), *ratios]
            rows.append([name, row.organ, *scores, format_alarms(row.false_alarms), str(row.dice.pairs)])
            name = ""
        means = [format_number(source.dice), format_number(mean(row.pooled_dice for row in source.organs))]
        rows.append(["", "mean of organs", *means, *[format_number(None)] * 3, ""])
    return ["", *text_table(rows, rules=rules)]


def _rater_lines(raters: RaterScores) -> list[str]:
    short = [Path(name).name or name for name in raters.names]
    names = raters.names if len(set(short)) < len(short) else short
    head = ["organ", *names, "mean of raters", "between raters", "lowest", "pairs", "left out"]
    rows = [head]
    for row in raters.organs:
        to_each = [format_number(value) for value in (*row.prediction, row.mean)]
        counts = [str(row.pairs), str(row.left_out)]
        rows.append([row.organ, *to_each, format_spread(row.between), format_number(row.lowest), *counts])
    return [
        "",
        "Dice of the prediction to each rater, and of raters to each other (mean, and the two who agree least), over",
        "the pairs that every rater has drawn:",
        *text_table(rows),
    ]


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, a dash for one that does not exist."""
    return "–" if value is None else f"{value:.{digits}f}"


def format_spread(spread: Spread, digits: int = 3) -> str:
    """Return mean ± standard deviation; without the latter for one pair."""
    if spread.mean is None:
        return format_number(None)
    return format_number(spread.mean, digits) + (f" ± {spread.std:.{digits}f}" if spread.pairs > 1 else "")


def format_alarms(alarms: FalseAlarms) -> str:
    """Return how many of how many pairs, and their median volume; a dash where every pair holds the organ."""
    if not alarms.of:
        return format_number(None)
    volume = "" if alarms.median_ml is None else f" ({alarms.median_ml:.1f} ml)"
    return f"{alarms.pairs}/{alarms.of}{volume}"
