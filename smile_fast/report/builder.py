"""One self-contained HTML page about one or several runs."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import smile_fast
from smile_fast.report.collect import RunRecord, check_output, collect, open_runs
from smile_fast.report.figures import training_chart
from smile_fast.report.gallery import prediction_rows, pseudo_rows
from smile_fast.report.methods import method_of
from smile_fast.report.palette import BACKGROUND, PSEUDO, organ_colours
from smile_fast.report.rendering import format_hu, render
from smile_fast.report.review import write_review
from smile_fast.report.round_blocks import findings_of, round_blocks
from smile_fast.report.score_blocks import score_blocks
from smile_fast.supervision.audit import Audit, audit_store
from smile_fast.text_table import listed
from smile_fast.training.run import Run
from smile_runtime.io.files import atomic_path
from smile_runtime.progress import progress

REVIEW_SHOWN = 10  # lines of a round on the page; the table beside it has all


@dataclass(frozen=True)
class AuditBlock:
    """The label audit of the runs that share a store and its declarations."""

    runs: str
    audit: Audit


def write_report(
    paths: Sequence[Path],
    out: Path,
    say: Callable[[str], None] = lambda text: None,
    *,
    store: Path | None = None,
    review: Path | None = None,
) -> list[Path]:
    """Write the page, and beside it the table of what to review first.

    Args:
        paths: run folders; several are compared side by side.
        out: HTML file to write, atomically.
        say: called with what is being done.
        store: where the store of all of them is now, if not where it was when they were trained.
        review: CSV file to write; beside the page by default, if a run has a round.

    Returns:
        The files that were written.

    Raises:
        InputError: a run cannot be read, or the page not be written, or only over a file of a run or its store.
    """
    with ExitStack() as held:
        runs = open_runs(paths, store, held)
        table = review or out.with_suffix(".review.csv")
        for target in (out, table):
            check_output(target, runs)
        with atomic_path(out) as path:  # first of all, so that no hour's work is lost to an unwritable name
            say("reading the runs")
            records = collect(runs)
            path.write_text(page_of(records, say), encoding="utf-8")
        findings = {record.name: findings_of(record) for record in records if record.rounds}
        if not findings and review is None:
            return [out]
        write_review(table, findings)
        return [out, table]


def build_report(runs: Sequence[Run], say: Callable[[str], None] = lambda text: None) -> str:
    """Return the page about some runs as HTML; see `write_report`."""
    return page_of(collect(runs), say)


def page_of(records: Sequence[RunRecord], say: Callable[[str], None] = lambda text: None) -> str:
    """Return the page as HTML; see `write_report`."""
    organs = tuple(dict.fromkeys(organ for record in records for organ in record.run.organs))
    colours = organ_colours(organs)
    scores = score_blocks(records, organs, colours)
    audits = _audits(records)
    say("drawing slices")
    context = {
        "records": records,
        "organs": organs,
        "colours": colours,
        "pseudo_colour": PSEUDO,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "version": smile_fast.__version__,
        "facts": _facts(records),
        "alphas": _alphas(records, organs),
        "audits": audits,
        "scores": scores,
        "unevaluated": [record.name for record in records if not record.evaluations],
        "curves": {record.name: training_chart(record.curves, record.run.organs, colours) for record in records},
        "curves_validated": {
            record.name: any(curve.values for curve in record.curves.validation.values()) for record in records
        },
        "unlike_training": _unlike_training(records),
        "unvalidated": _unvalidated(records),
        "review_shown": REVIEW_SHOWN,
        "round_blocks": round_blocks(records, colours),
        "background_colour": BACKGROUND,
        "method_of_run": {record.name: method_of(record.run.config) for record in records},
        "methods": dict(method_of(record.run.config) for record in records),
        "predictions": prediction_rows(records, colours),
        "pseudo": [row for record in records if record.rounds for row in pseudo_rows(record, colours)],
        "windows": sorted({tuple(record.run.config.model.window) for record in records}),
        "cohort": ", ".join(dict.fromkeys(record.run.store_path.name for record in records)),
    }
    return render("template.html", context)


def format_seconds(seconds: float) -> str:
    """Return a duration as 45 s, 12 min or 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _facts(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """What was run: one line a fact, one column a run."""
    lines: dict[str, list[str]] = {}
    for record in records:
        run, config, environment = record.run, record.run.config, record.environment
        model = config.model
        channels = "1 slice" if model.channels == 1 else f"{model.channels} neighbouring slices"
        width = "" if model.width == 64 else f", width {model.width}"
        clipped = f", gradient clipped to {config.clip_norm:g}" if config.clip_norm else ""
        facts = {
            "Method": method_of(config)[0],
            "Cohort": run.store_path.name,
            "Cases": ", ".join(f"{len(run.cases(split))} {split}" for split in ("train", "validation", "test")),
            "Network": f"DeepLab v3, {model.backbone}, output stride {model.output_stride}{width}, {channels}",
            "Pixels": str(run.pixel_space),
            "HU window": f"{format_hu(model.window[0])} to {format_hu(model.window[1])}",
            "Training": f"{record.curves.iterations} iterations in {format_seconds(record.curves.seconds)}, "
            f"{config.optimizer}, batch {config.batch_size}, seed {config.seed}{clipped}",
            "Relabelling": f"{config.rounds} rounds, γ max {config.gamma_max:g}, per {config.scope}"
            if config.method == "smiler"
            else "none",
            "Versions": f"smile-fast {environment.smile_fast}, torch {environment.packages.get('torch', '?')}"
            if environment
            else "?",
            "Machine": environment.device if environment else "?",
        }
        for name, value in facts.items():
            lines.setdefault(name, []).append(value)
    return list(lines.items())


def _alphas(records: Sequence[RunRecord], organs: Sequence[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Per organ and run: the share of training cases without its annotation, and the counts behind it."""
    table = []
    for organ in organs:
        cells = []
        for record in records:
            counts = record.state_counts(organ) if organ in record.run.organs else {}
            without, present = counts.get("missing", 0) + counts.get("hidden", 0), sum(counts.values())
            present -= counts.get("absent", 0)
            cells.append({"alpha": without / present if present else None, "without": without, "present": present})
        table.append((organ, cells))
    return table


def _audits(records: Sequence[RunRecord]) -> list[AuditBlock]:
    """Audit the training cases once for all runs that share store, declarations and cases."""
    groups: list[tuple[RunRecord, list[str]]] = []
    for record in records:
        for first, names in groups:
            same = first.run.store_path == record.run.store_path and first.states == record.states
            if same and first.run.cases("train") == record.run.cases("train"):
                names.append(record.name)
                break
        else:
            groups.append((record, [record.name]))
    blocks = []
    for record, names in groups:
        cases = record.run.cases("train")
        shown = progress(cases, total=len(cases), label="audit the labels")
        blocks.append(AuditBlock(", ".join(names), audit_store(record.run.store, record.states, shown)))
    return blocks


def _unlike_training(records: Sequence[RunRecord]) -> list[str]:
    """Say whose cases have pixels unlike those of its training, and which."""
    return [
        f"{record.name}, {listed(cases)}: {sentence}."
        for record in records
        for sentence, cases in record.run.unlike_training(
            [case for split in ("validation", "test") for case in record.run.cases(split)]
        ).items()
    ]


def _unvalidated(records: Sequence[RunRecord]) -> list[str]:
    """Say why a validation curve is missing, once for all runs with the same reason."""
    runs: dict[str, list[str]] = {}
    for record in records:
        drawn = {organ for organ, curve in record.curves.validation.items() if curve.values}
        missing = [organ for organ in record.run.organs if organ not in drawn]
        if not record.run.cases("validation"):
            reason = "no validation cases were set aside (--folds), so there is no curve of their Dice."
        elif not drawn:
            reason = "the validation cases were not looked at during training (--validate-every)."
        elif missing:
            reason = f"no validation case shows an annotated {' or '.join(missing)}."
        else:
            continue
        runs.setdefault(reason, []).append(record.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in runs.items()]
