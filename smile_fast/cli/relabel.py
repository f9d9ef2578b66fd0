"""`smile-fast relabel`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from smile_fast.cli.run_options import (
    add_shares,
    add_store,
    add_threads,
    device_of,
    refuse_shard_and_finish,
    warn_of_unfinished,
)
from smile_fast.settings import declared
from smile_fast.training.config import TrainConfig
from smile_runtime.errors import InputError

if TYPE_CHECKING:
    from smile_fast.training.rounds import Round, StoredRound
    from smile_fast.training.run import Run

HELP = "write one more relabelling round of a trained run, to look at what it would add, or undo rounds"
REVIEWED = 5  # pairs that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("--round", type=int, help="number of the round (default: the next one)")
    parser.add_argument("--gamma", type=float, help="share of the candidates (default: the run's curriculum)")
    scope = declared(TrainConfig)["scope"]
    parser.add_argument("--scope", choices=scope.choices, help=f"{scope.help} (default: that of the run)")
    parser.add_argument("--undo", type=int, metavar="KEEP", help="drop all rounds after round KEEP (0: all) and stop")
    add_shares(parser, "cases", "make the round appear")
    add_store(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write one more round or a share of it, finish one, or drop rounds."""
    from smile_fast.training.run import opened

    refuse_shard_and_finish(arguments)
    with opened(arguments.run_folder, arguments.store) as run:
        _work(run, arguments)


def _work(run: "Run", arguments: argparse.Namespace) -> None:
    from smile_fast.data.folder_lock import locked, shared

    if arguments.undo is not None:
        with locked(run.path):
            _undo(run, arguments)
        return
    if run.config.head == "softmax":
        raise InputError(f"{run.path}: its softmax has no organ-wise scores; name a run of smile or smiler")
    if (arguments.shard or arguments.finish) and arguments.round is None:
        raise InputError("--round: is not given, and shares of a round must be of the same one; give its number")
    alone = arguments.shard is None and not arguments.finish  # else the round's own lock keeps others of the round out
    with (locked if alone else shared)(run.path):
        if arguments.finish:
            _finish(run, arguments)
        else:
            _relabel(run, arguments)


def _undo(run: "Run", arguments: argparse.Namespace) -> None:
    from smile_fast.training.rounds import undo_rounds

    if arguments.shard is not None or arguments.finish:
        raise InputError("--undo: drops rounds, shares and all; leave --shard and --finish out")
    if arguments.round is not None or arguments.gamma is not None or arguments.scope is not None:
        raise InputError("--undo: drops rounds and writes none; leave --round, --gamma and --scope out")
    if arguments.undo < 0:
        raise InputError(f"--undo: {arguments.undo} is not the number of a round; give 0 (drop all) or more")
    dropped = undo_rounds(run.rounds_path, arguments.undo)
    print(
        f"dropped rounds: {', '.join(map(str, dropped)) if dropped else 'none'}; human labels are as they were, "
        "and so is the trained network"
    )


def _relabel(run: "Run", arguments: argparse.Namespace) -> None:
    from smile_fast.cli.train import choose_device
    from smile_fast.training.curriculum.conduct import as_begun
    from smile_fast.training.curriculum.fit import Fit, fit_round, fits
    from smile_fast.training.relabel import relabel, relabel_share
    from smile_fast.training.rounds import existing_rounds, open_round

    this = _round(run, arguments)
    if this.number in existing_rounds(run.rounds_path):
        done_before = open_round(run.rounds_path, this.number).round
        if arguments.shard is not None and done_before == as_begun(this, done_before):
            print(f"round {this.number} is finished already: nothing is left to do for share {arguments.shard}")
            return
        raise InputError(f"{run.path}: has a round {this.number} already; drop it with --undo {this.number - 1} first")
    warn_of_unfinished(run, but=this.number)
    device = choose_device(device_of(arguments), arguments.threads)
    view, model = run.view("train"), run.load_model().to(device)
    fit = Fit.empty(model, len(run.organs))
    if fits(run.config):
        fit = fit_round(run.config, model, view, run.view("validation"), this.number)
        this = fit.of(this, run.organs)
    if arguments.shard is None:
        _print(run, relabel(model, view, run.rounds_path, this, heads=fit.heads))
        return
    done = relabel_share(model, view, run.rounds_path, this, shard=arguments.shard, heads=fit.heads)
    print(
        f"share {arguments.shard} of round {this.number} is done, {done} cases now; when all are: smile-fast relabel "
        f"{run.path} --round {this.number} --finish"
    )


def _finish(run: "Run", arguments: argparse.Namespace) -> None:
    from smile_fast.training.curriculum.conduct import judge_of
    from smile_fast.training.relabel import weights_digest
    from smile_fast.training.unfinished_round import finish_round

    weights, this, view = weights_digest(run.load_model()), _round(run, arguments), run.view("train")
    judge = judge_of(view, run.rounds_path, this)
    _print(run, finish_round(run.rounds_path, this, view.cases, weights, judge))


def _round(run: "Run", arguments: argparse.Namespace) -> "Round":
    """The round that the options name; what they leave out is the next number, and the run's own curriculum."""
    from smile_fast.training.curriculum.conduct import as_begun, round_of
    from smile_fast.training.rounds import existing_rounds
    from smile_fast.training.unfinished_round import begun_round

    following = max(existing_rounds(run.rounds_path), default=0) + 1
    number = arguments.round if arguments.round is not None else following
    if number < 1:
        raise InputError(f"--round: {number} is not the number of a round; give 1 or more")
    begun = begun_round(run.rounds_path, number) if arguments.finish else None
    gamma = arguments.gamma if arguments.gamma is not None else begun.gamma if begun else None
    if gamma is None and number > run.config.rounds:
        raise InputError(f"{run.path}: has all {run.config.rounds} rounds of its curriculum; give --gamma for one more")
    gamma = run.config.gamma(number) if gamma is None else gamma
    if not 0 <= gamma <= 1:
        raise InputError(f"--gamma: {gamma} is not a share; give a number in 0..1")
    scope = arguments.scope or (begun.scope if begun else run.config.scope)
    return as_begun(round_of(run.config, run.view("train"), run.rounds_path, number, gamma, scope), begun)


def _print(run: "Run", written: "StoredRound") -> None:
    print(f"wrote round {written.round.number} (gamma {written.round.gamma:.3g}): {written.folder}")
    for organ, total in written.totals().items():
        print(f"  {organ}: " + ", ".join(f"{voxels:,} {name}" for name, voxels in total.items()) + " voxels")
    _print_review(run, written)


def _print_review(run: "Run", written: "StoredRound") -> None:
    """Say what to look at first; of the truth that is hidden from training nothing is read."""
    from smile_fast.report.review import review_first
    from smile_fast.training.curriculum.findings import read_pairs
    from smile_fast.training.curriculum.ranges import annotated_ranges
    from smile_fast.training.rounds import existing_rounds, open_round

    number, view = written.round.number, run.view("train")
    before = open_round(run.rounds_path, number - 1) if number - 1 in existing_rounds(run.rounds_path) else None
    pairs, _ = read_pairs(run.store, view.declarations, written, before, look_at_hidden=False)
    findings = review_first(pairs, annotated_ranges(view))
    if findings:
        print(f"review these first, of {len(findings)} (case, organ) pairs (smile-fast report lists all):")
    for finding in findings[:REVIEWED]:
        print(f"  {finding.pair.case}, {finding.pair.organ}: {finding.why}")
