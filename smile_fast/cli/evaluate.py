"""`smile-fast evaluate`."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from smile_fast.cli.run_options import add_shares, add_store, add_threads, device_of, refuse_shard_and_finish

if TYPE_CHECKING:
    from smile_fast.training.run import Run

HELP = "score a run: Dice, NSD, HD95, volumes and false alarms per organ, over the (case, organ) pairs that are drawn"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Score a run on the (case, organ) pairs whose truth is drawn. Mean Dice, NSD and HD95 run over the pairs whose "
        "truth holds the organ, the same ones for all methods; a missed organ has Dice 0, NSD 0 and the diagonal of "
        "the volume as its HD95. Where the truth does not hold the organ, what is predicted is a false alarm: their "
        "rate and median volume stand apart. Pooled Dice and predicted/true volume run over both. Cases whose sources "
        "are known (sources.csv) are scored by source, too. 'smile-fast compare' says whether runs differ."
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="cases to score (default: test); each split has its own file in RUN",
    )
    parser.add_argument(
        "--nsd-tolerance",
        type=float,
        default=3.0,
        metavar="MM",
        help="distance in mm up to which two surfaces count as the same",
    )
    parser.add_argument("--no-surface", action="store_true", help="Dice only: leave the slower NSD and HD95 out")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="score the label maps DIR/CASE.nii.gz, e.g. of smile-predict, instead of the run's own network",
    )
    parser.add_argument(
        "--raters",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="label maps DIR/CASE.nii.gz that other raters drew: the Dice of the prediction to each of them and to the "
        "store's labels, beside the Dice of raters to each other",
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="keep the predicted label maps as DIR/CASE.nii.gz; DIR is new, empty, or of an earlier evaluation and "
        "unchanged since, and appears when all cases are there",
    )
    add_shares(parser, "cases", "put the scores together")
    add_store(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes CUDA when it is there")
    add_threads(parser)
    parser.add_argument(
        "--workers",
        type=_worker_count,
        metavar="N|auto",
        help="processes that score cases while others are predicted; 1 scores them in this one, and each holds a case "
        "in memory (default: auto, one for each CPU that it may use, fewer for little work)",
    )


def _worker_count(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number of processes; give 1 or more, or auto") from None


def run(arguments: argparse.Namespace) -> None:
    """Score the cases, print the table, write it into RUN as JSON and CSV; or do a share of that."""
    from smile_fast.data.folder_lock import shared
    from smile_fast.training.run import opened

    refuse_shard_and_finish(arguments)
    with opened(arguments.run_folder, arguments.store) as run, shared(run.path):
        _evaluate(run, arguments)


def _evaluate(run: "Run", arguments: argparse.Namespace) -> None:
    from smile_fast.cli.train import choose_device
    from smile_fast.evaluation import (
        Scoring,
        evaluate_run,
        evaluate_share,
        finish_evaluation,
        format_table,
        score_file,
        write_evaluation,
    )

    tolerance = None if arguments.no_surface else arguments.nsd_tolerance
    scoring = Scoring(arguments.split, tolerance, arguments.predictions, tuple(arguments.raters))
    work = {"device": choose_device(device_of(arguments), arguments.threads), "workers": arguments.workers}
    if arguments.shard is not None:
        done = evaluate_share(run, scoring, arguments.shard, write=arguments.write, **work)
        whose = f"share {arguments.shard} of the {arguments.split} cases"
        if done is None:
            print(f"the scores of split {arguments.split} are finished already: nothing is left to do for {whose}")
        else:
            print(f"{whose} is scored, {done} now; when all are: --finish")
        return
    if arguments.finish:
        evaluation = finish_evaluation(run, scoring, arguments.write)
    else:
        keywords = {field.name: getattr(scoring, field.name) for field in fields(scoring)}
        evaluation = evaluate_run(run, **keywords, write=arguments.write, **work)
    _warn(run, arguments.split)
    if not arguments.finish:
        write_evaluation(evaluation, run.path)
    path = run.path / score_file(arguments.split, of_predictions=arguments.predictions is not None)
    print(format_table(evaluation))
    if arguments.write is not None:
        print(f"kept {len(evaluation.cases)} label maps in {arguments.write}")
    print(f"wrote the scores of split {arguments.split} to {path} and {path.stem}.csv")


def _warn(run: "Run", split: str) -> None:
    from smile_fast.data.same_scans import leak_warning
    from smile_fast.text_table import listed

    scored = [] if split == "train" else run.cases(split)
    if leak := leak_warning(run.store, run.cases("train"), scored):
        print(f"warning: {leak}", file=sys.stderr)
    for warning, cases in run.unlike_training(run.cases(split)).items():
        print(f"warning: {listed(cases)}: {warning}", file=sys.stderr)
