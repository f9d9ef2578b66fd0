"""`smile-fast relabel`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from smile_fast.cli.run_options import add_store, add_threads
from smile_fast.settings import declared
from smile_fast.training.config import TrainConfig
from smile_runtime.errors import InputError

if TYPE_CHECKING:
    from smile_fast.training.run import Run

HELP = "write one more relabelling round of a trained run, to look at what it would add, or undo rounds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("--round", type=int, help="number of the round (default: the next one)")
    parser.add_argument("--gamma", type=float, help="share of the candidates (default: the run's curriculum)")
    scope = declared(TrainConfig)["scope"]
    parser.add_argument("--scope", choices=scope.choices, help=f"{scope.help} (default: that of the run)")
    parser.add_argument("--undo", type=int, metavar="KEEP", help="drop all rounds after round KEEP (0: all) and stop")
    add_store(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write one more round, or drop rounds."""
    from smile_fast.data.folder_lock import locked
    from smile_fast.training.run import opened

    with opened(arguments.run_folder, arguments.store) as run, locked(run.path):
        _relabel(run, arguments)


def _relabel(run: "Run", arguments: argparse.Namespace) -> None:
    from smile_fast.cli.train import choose_device
    from smile_fast.training.relabel import relabel
    from smile_fast.training.rounds import Round, existing_rounds, undo_rounds

    if arguments.undo is not None:
        if arguments.round is not None or arguments.gamma is not None or arguments.scope is not None:
            raise InputError("--undo: drops rounds and writes none; leave --round, --gamma and --scope out")
        if arguments.undo < 0:
            raise InputError(f"--undo: {arguments.undo} is not the number of a round; give 0 (drop all) or more")
        dropped = undo_rounds(run.rounds_path, arguments.undo)
        print(
            f"dropped rounds: {', '.join(map(str, dropped)) if dropped else 'none'}; human labels are as they were, "
            "and so is the trained network"
        )
        return
    if run.config.method == "baseline":
        raise InputError(f"{run.path}: its softmax has no organ-wise scores; name a run of smile or smiler")
    following = max(existing_rounds(run.rounds_path), default=0) + 1
    number = arguments.round if arguments.round is not None else following
    if number in existing_rounds(run.rounds_path):
        raise InputError(f"{run.path}: has a round {number} already; drop it with --undo {number - 1} first")
    if arguments.gamma is None and number > run.config.rounds:
        raise InputError(f"{run.path}: has all {run.config.rounds} rounds of its curriculum; give --gamma for one more")
    gamma = arguments.gamma if arguments.gamma is not None else run.config.gamma(number)
    if number < 1:
        raise InputError(f"--round: {number} is not the number of a round; give 1 or more")
    if not 0 <= gamma <= 1:
        raise InputError(f"--gamma: {gamma} is not a share; give a number in 0..1")
    device = choose_device(arguments.device, arguments.threads)
    view = run.view("train")
    this = Round(number, gamma, arguments.scope or run.config.scope)
    written = relabel(run.load_model().to(device), view, run.rounds_path, this)
    print(f"wrote round {number} (gamma {gamma:.3g}): {written.folder}")
    for organ, total in written.totals().items():
        print(f"  {organ}: " + ", ".join(f"{voxels:,} {name}" for name, voxels in total.items()) + " voxels")
