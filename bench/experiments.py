"""The method's experiments on phantoms that are painted on real label maps: what SMILE and SMILEr gain, and where.

python -m bench.experiments figure3 OUT --labelmaps DIR       # -> bench/results/figure3.csv, figure3.png, figure3.json
python -m bench.experiments by_source OUT --labelmaps DIR     # -> bench/results/by_source.json, README.md
python -m bench.experiments brakes OUT --labelmaps DIR        # -> bench/results/brakes.json

`figure3` hides annotations at random, as the paper does, and compares the methods over ten shares and three splits.
`by_source` has two and three sources with scanners of their own, each of which draws some of the organs only, with
three seeds of each; SMILEr is compared with SMILE trained for as many steps. `brakes` measures each brake of the
curriculum alone, and some together, on the first cohort of three sources and where 90% of the annotations are hidden at
random; it needs the stores of the other two. All go on where they were stopped.
Everything is a small network with bfloat16 where the processor has it, and rounds of 360 steps. Before them are 600
steps, by source 1,200: after 600, the rounds came too early for one of the cohorts and cost it Dice.
"""

import argparse
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import ROOT, commit, cpu
from smile_fast.cli.train import add_settings, settings_given
from smile_fast.data.store import Store
from smile_fast.demo.timed_commands import Commands
from smile_fast.evaluation.comparison import paired_difference
from smile_fast.evaluation.scores import PairScore
from smile_fast.supervision import State
from smile_fast.sweep.grid import Cell, Sweep
from smile_fast.sweep.tables import finished_cells
from smile_fast.sweep.work import Budget, work
from smile_fast.training.execution import DEFAULT_EXECUTION
from smile_fast.training.presets import NO_BRAKES, PRESETS, Preset
from smile_fast.training.rounds import existing_rounds
from smile_fast.training.run import Run
from smile_runtime.io.files import atomic_path, read_json, write_json

RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- sources:begin -->\n", "<!-- sources:end -->\n"
PHANTOM = ("--train", "50", "--test", "0", "--size", "112", "--slices", "20")
_ALL = (
    *("--backbone", "resnet18", "--width", "16", "--rates", "3", "6", "9", "--batch-size", "8", "--lr", "0.003"),
    *("--ema", "0.98", "--amp", "bfloat16"),
)
TRAIN = (*_ALL, "--epochs", "6", "--round-share", "0.6")
TRAIN_BY_SOURCE = (*_ALL, "--epochs", "12", "--round-share", "0.3")  # scanners that differ take longer
METHODS = ("baseline", "smile", "smiler")  # of Figure 3
AS_LONG = ("smile-long", "smiler-plain")  # beside them, at some shares
COMPARED = ("smile", "smile-long", "smiler-plain", "smiler")  # by source
SOURCES = {"two sources": "liver;pancreas,stomach", "three sources": "liver;pancreas;stomach"}
SEEDS = (10, 11, 12)
MARGIN = {"margin": 20.0}
BRAKES: Mapping[str, Mapping[str, Any]] = {
    "no brake": {},
    "margin": MARGIN,
    "negatives": {"negatives": 0.95},
    "volume": {"limit_volume": True},
    "component": {"one_component": True},
    "slices": {"limit_slices": True},
    "stop": {"stop": True},
    "calibrate": {"calibrate": True},
    "agreement": {"score": "agreement"},
    "confidence": {"score": "confidence"},
    "margin, volume": {**MARGIN, "limit_volume": True},
    "margin, agreement": {**MARGIN, "score": "agreement"},
    "margin, confidence": {**MARGIN, "score": "confidence", "calibrate": True},
}
"""Name -> settings; all else is as the paper has it."""
AT_RANDOM = ("no brake", "margin", "agreement", "confidence", "margin, agreement", "margin, confidence")


def figure3(commands: Commands, labelmaps: Path, jobs: int) -> None:
    """Make the cohort and sweep it; keep the table and the figure."""
    out = commands.out
    cohort(commands, "figure3", labelmaps, 0, ())
    sweep = ("sweep", out / "figure3-store", out / "figure3", *TRAIN, "--threads", "1")
    commands.smile_fast("sweep figure3", *sweep, "--methods", ",".join(METHODS), "--jobs", jobs)
    commands.smile_fast("sweep as long", *sweep, "--methods", ",".join(AS_LONG), "--alphas", "0.7,0.9", "--jobs", jobs)
    for name in ("figure3.csv", "figure3.png"):
        with atomic_path(RESULTS / name) as path:
            shutil.copyfile(out / "figure3" / name, path)
    summary = read_json(out / "figure3" / "summary.json", "sweep again")
    write_json(RESULTS / "figure3.json", {**commit(), "cpu": cpu(), "train": list(TRAIN), **summary})


def by_source(commands: Commands, labelmaps: Path, jobs: int) -> None:
    """Make the cohorts, sweep what each of them declares, and record what the methods make of it."""
    out, rows = commands.out, list[dict[str, Any]]()
    for title, organs in SOURCES.items():
        for seed in SEEDS:
            name = f"{title.replace(' ', '-')}-{seed}"
            drawn = ("--sources", len(organs.split(";")), "--source-organs", organs)
            cohort(commands, name, labelmaps, seed, drawn)
            sweep = ("sweep", out / f"{name}-store", out / name, "--methods", ",".join(COMPARED), *TRAIN_BY_SOURCE)
            options = ("--as-declared", "--folds", 1, "--seed", seed, "--threads", 1, "--jobs", jobs)
            commands.smile_fast(f"sweep {name}", *sweep, *options)
            rows += [{"cohort": title, "seed": seed, **row} for row in rows_of(out / f"{name}-store", out / name)]
    compared = {title: list(comparisons([row for row in rows if row["cohort"] == title])) for title in SOURCES}
    record = {**commit(), "cpu": cpu(), "train": list(TRAIN_BY_SOURCE), "compared": compared, "rows": rows}
    write_json(RESULTS / "by_source.json", record)
    write_table(record)


def brakes(commands: Commands, labelmaps: Path, jobs: int) -> None:
    """Train under each brake from one start, and record Dice, volumes and what the rounds added; `jobs` has no say."""
    out, seed = commands.out, SEEDS[0]
    cohort(commands, "figure3", labelmaps, 0, ())
    cohort(
        commands,
        f"three-sources-{seed}",
        labelmaps,
        seed,
        ("--sources", 3, "--source-organs", SOURCES["three sources"]),
    )
    presets = {
        "smile": PRESETS["smile"],
        "smile-long": PRESETS["smile-long"],
        **{name: Preset({"method": "smiler", **NO_BRAKES, **settings}) for name, settings in BRAKES.items()},
    }
    by_source, random = f"three-sources-{seed}-store", "figure3-store"
    declared = Sweep(
        Store.open(out / by_source),
        out / "brakes-sources",
        training_options(TRAIN_BY_SOURCE),
        seed,
        as_declared=True,
        presets=presets,
    )
    hidden = Sweep(Store.open(out / random), out / "brakes-random", training_options(TRAIN), presets=presets)
    for sweep, cells in (
        (declared, [Cell(name, 0.0, 0) for name in presets]),
        (hidden, [Cell(name, 0.9, fold) for fold in range(3) for name in ("smile", "smile-long", *AT_RANDOM)]),
    ):
        work(sweep, cells, torch.device("cpu"), DEFAULT_EXECUTION, Budget())
    found = {
        "sources": list(rows_of(out / by_source, declared.out)),
        "random": list(rows_of(out / random, hidden.out)),
    }
    settings = {name: dict(each) for name, each in BRAKES.items()}
    write_json(RESULTS / "brakes.json", {**commit(), "cpu": cpu(), "brakes": settings, **found})


def training_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments of a command as settings."""
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return settings_given(parser.parse_args(arguments))[0]


def cohort(commands: Commands, name: str, labelmaps: Path, seed: int, options: Sequence[object]) -> None:
    """Make phantoms and prepare them, unless that was done."""
    raw, store = commands.out / f"{name}-cohort", commands.out / f"{name}-store"
    if not store.exists():
        arguments = ("--labelmaps", labelmaps, "--seed", seed, *options, "--force")
        commands.smile_fast(f"phantom {name}", "phantom", raw, *PHANTOM, *arguments)
        commands.smile_fast(f"prepare {name}", "prepare", raw, store)


def rows_of(store_path: Path, sweep: Path) -> Iterator[dict[str, Any]]:
    """A row a method and organ: the Dice of every held-out case, volumes where the source never drew the organ."""
    store = Store.open(store_path)
    declared, source = store.declarations(), {name: case.source for name, case in store.cases.items()}
    drawn = {
        (source[case], organ)
        for case, states in declared.items()
        for organ, state in states.items()
        if state is State.ANNOTATED
    }
    for record in finished_cells(sweep):
        rounds = rounds_of(store, sweep, record.cell)
        for organ in store.organs:
            pairs = [pair for pair in record.pairs if pair.organ == organ and pair.truth_ml > 0]
            never = [pair for pair in pairs if (source[pair.case], organ) not in drawn]
            yield {
                "method": record.cell.method,
                "fold": record.cell.fold,
                "organ": organ,
                "dice": {pair.case: round(pair.dice or 0.0, 4) for pair in pairs},
                "never_drawn": volumes(never),
                "volume_ratio": volumes(pairs)["volume_ratio"],
                "rounds": rounds.get(organ, []),
            }


def volumes(pairs: Sequence[PairScore]) -> dict[str, float]:
    """Mean Dice, and the predicted volume over the true one, of all pairs together."""
    if not pairs:
        return {}
    predicted, true = sum(pair.predicted_ml for pair in pairs), sum(pair.truth_ml for pair in pairs)
    dice = float(np.mean([pair.dice or 0.0 for pair in pairs]))
    return {"pairs": len(pairs), "dice": round(dice, 4), "volume_ratio": round(predicted / true, 3)}


def rounds_of(store: Store, sweep: Path, cell: Cell) -> Mapping[str, list[dict[str, Any]]]:
    """Organ -> precision and recall of the labels that each round added."""
    from smile_fast.sweep.rounds_figure import HEAD, added_labels

    run, found = Run.open(sweep / cell.folder, store), defaultdict(list)
    if existing_rounds(run.rounds_path):
        for row in added_labels(run):
            named = dict(zip(HEAD, row, strict=True))
            found[str(named.pop("organ"))].append(named)
    return found


def comparisons(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Methods against SMILE trained as long, over the held-out cases of all seeds."""
    by_method: dict[str, dict[tuple[str, int, str], float]] = defaultdict(dict)
    for row in rows:
        by_method[row["method"]] |= {(row["organ"], row["seed"], case): dice for case, dice in row["dice"].items()}
    reference = by_method["smile-long"]
    organs = list(dict.fromkeys(organ for organ, _, _ in reference))
    for method, scores in by_method.items():
        for organ in [*organs, "mean"]:
            keys = sorted({key[1:] for key in reference if organ in ("mean", key[0])})
            own, other = ([_of_case(each, key, organ, organs) for key in keys] for each in (scores, reference))
            difference = paired_difference(own, other)
            yield {"method": method, "organ": organ, "dice": float(np.mean(own)), **asdict(difference)}


def _of_case(
    scores: Mapping[tuple[str, int, str], float], key: tuple[int, str], organ: str, organs: Sequence[str]
) -> float:
    """The Dice of a case: of an organ, or the mean of those that it holds."""
    chosen = organs if organ == "mean" else [organ]
    return float(np.mean([scores[each, *key] for each in chosen if (each, *key) in scores]))


def table(record: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = []
    for title, compared in record["compared"].items():
        organs = list(dict.fromkeys(row["organ"] for row in compared))
        lines += [
            f"| {title} | {' | '.join(organs)} | volume / truth where the source never drew it, by seed |",
            "|---|" + "---|" * (len(organs) + 1),
        ]
        for method in COMPARED:
            cells = [_cell(row) for row in compared if row["method"] == method]
            ratios: dict[str, list[str]] = defaultdict(list)
            for row in record["rows"]:
                if row["cohort"] == title and row["method"] == method and row["never_drawn"]:
                    ratios[row["organ"]].append(f"{row['never_drawn']['volume_ratio']:.2f}")
            volumes_of = "; ".join(f"{organ} {', '.join(each)}" for organ, each in ratios.items())
            lines.append(f"| `{method}` | {' | '.join(cells)} | {volumes_of} |")
        lines.append("")
    said = "Dice; in brackets the difference to `smile-long` in points with its 95% interval, over all held-out cases."
    return "\n".join([*lines, f"{said} {record['cpu']}, commit {record['commit']}.", ""])


def _cell(row: Mapping[str, Any]) -> str:
    dice = f"{row['dice']:.3f}"
    if row["method"] == "smile-long":
        return dice
    return f"{dice} ({100 * row['mean']:+.1f}, {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def write_table(record: Mapping[str, Any]) -> None:
    """Put the table of sources into the README."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    with atomic_path(readme) as path:
        path.write_text(before + BEGIN + table(record) + END + rest.split(END)[1], encoding="utf-8")


EXPERIMENTS = {"figure3": figure3, "by_source": by_source, "brakes": brakes}


def main() -> None:
    """Run one experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for cohorts and runs; goes on with what it holds")
    parser.add_argument("--labelmaps", type=Path, required=True, metavar="DIR", help="real label maps (*.nii.gz)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side (default: %(default)s)")
    arguments = parser.parse_args()
    (arguments.out / "logs").mkdir(parents=True, exist_ok=True)
    EXPERIMENTS[arguments.experiment](Commands(arguments.out), arguments.labelmaps, arguments.jobs)


if __name__ == "__main__":
    main()
