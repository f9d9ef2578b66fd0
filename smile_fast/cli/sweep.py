"""`smile-fast sweep`."""

import argparse
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any

from smile_fast.cli.run_options import add_shares, add_threads, refuse_shard_and_finish
from smile_fast.cli.train import add_settings, choose_device, settings_given
from smile_fast.training.config import parse_time
from smile_fast.training.presets import PRESETS
from smile_runtime.errors import InputError
from smile_runtime.threads import default_threads

HELP = "compare methods over shares of missing annotations and folds: trainings, scores, tables and the figure"

# What a sweep decides itself; its own --budget is the time for all cells.
_OWN = ("method", "policy", "budget", "folds", "fold", "seed")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of shares such as 0,.4,.7") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # the table keeps its lines
    parser.epilog = _table_of_methods()
    parser.add_argument("store", type=Path, metavar="STORE", help="folder that smile-fast prepare wrote")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder of the sweep; later calls add cells to it, and go on"
    )
    parser.add_argument(
        "--methods",
        default="baseline,smile,smiler",
        metavar="NAME,...",
        help="some of those below (default: %(default)s)",
    )
    parser.add_argument(
        "--alphas",
        type=_numbers,
        default=_numbers("0,.1,.2,.3,.4,.5,.6,.7,.8,.9"),
        metavar="SHARE,...",
        help="shares of annotations to hide, per organ (default: 0 to 0.9 in tenths)",
    )
    # Names of their own in the namespace: those of the training's settings mean something else.
    parser.add_argument(
        "--folds", dest="splits_drawn", type=int, default=3, metavar="N", help="random 80/20 splits (default: 3)"
    )
    parser.add_argument(
        "--seed",
        dest="first_seed",
        type=int,
        default=0,
        help="of splits, of what is hidden, of trainings (default: 0)",
    )
    parser.add_argument("--splits", type=Path, metavar="FILE", help="which cases are held out, or their patients")
    parser.add_argument(
        "--budget",
        dest="all_cells_budget",
        type=parse_time,
        default=0.0,
        metavar="TIME",
        help="start no cell after this time, e.g. 8h (0: no end)",
    )
    parser.add_argument(
        "--as-declared",
        action="store_true",
        help="train on what the store declares, e.g. what each source drew; --alphas has no say then",
    )
    parser.add_argument("--surfaces", action="store_true", help="score NSD and HD95 beside Dice")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells side by side (default: %(default)s)")
    add_shares(parser, "cells", "write the tables and the figure")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes CUDA when it is there")
    add_threads(parser)
    add_settings(parser, without=_OWN)


def _table_of_methods() -> str:
    names: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        names.setdefault(preset.line, []).append(name)
    width = max(len(", ".join(each)) for each in names.values())
    head = "methods, by what the voxels of an organ teach where it is missing (-long: in as many steps as smiler):"
    return "\n".join([head, *(f"  {', '.join(each):<{width}}  {line}" for line, each in names.items())])


def run(arguments: argparse.Namespace) -> int:
    """Compute the cells that are not finished, and write the tables of all that are."""
    from smile_fast.data.folder_lock import reading

    refuse_shard_and_finish(arguments)
    if arguments.jobs < 1:
        raise InputError(f"--jobs: {arguments.jobs} cannot be used; give 1 or more")
    with reading(arguments.store):
        return _sweep(arguments)


def _sweep(arguments: argparse.Namespace) -> int:
    from smile_fast.sweep.tables import write_tables
    from smile_fast.sweep.work import missing

    sweep, own = _planned(arguments)
    missing(sweep, own)  # says what is of another plan before anything is computed
    if not arguments.finish:
        status = _in_processes(arguments) if arguments.jobs > 1 else _work(arguments, arguments.threads)
        if status:
            return status
    lacking = missing(sweep, own)
    for cell in lacking:
        print(f"missing: {cell}")
    if arguments.shard is None:
        for path in write_tables(arguments.out):
            print(f"wrote {path}")
    print(f"{len(own) - len(lacking)} of {len(own)} cells are finished")
    return 0


def _planned(arguments: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The sweep, and the cells of this share."""
    from smile_fast.cli.train import read_splits
    from smile_fast.data.store import Store
    from smile_fast.sweep.grid import Sweep, cells_of

    options, _ = settings_given(arguments)
    alphas = (0.0,) if arguments.as_declared else arguments.alphas
    cells = cells_of(arguments.methods.split(","), alphas, arguments.splits_drawn)
    store = Store.open(arguments.store)
    splits = read_splits(arguments.splits, store)
    sweep = Sweep(
        store, arguments.out, options, arguments.first_seed, arguments.surfaces, splits, arguments.as_declared
    )
    return sweep, cells if arguments.shard is None else arguments.shard.of(cells)


def _work(arguments: argparse.Namespace, threads: int) -> int:
    """Compute cells in this process."""
    from smile_fast.sweep.work import Budget, work
    from smile_fast.training.interrupt import Interrupted

    sweep, own = _planned(arguments)
    _, execution = settings_given(arguments)
    try:
        work(sweep, own, choose_device(arguments.device, threads), execution, Budget.of(arguments.all_cells_budget))
    except Interrupted as stopped:
        print("stopped; the same command goes on")
        return 128 + stopped.number
    return 0


def _in_processes(arguments: argparse.Namespace) -> int:
    """Compute cells in processes that share them by their locks; each has its part of the threads."""
    threads = max(1, (arguments.threads or default_threads()) // arguments.jobs)
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_one_of_several, args=(arguments, threads)) for _ in range(arguments.jobs)]
    for child in children:
        child.start()

    def stop(number: int, _: object) -> None:
        for child in children:
            child.terminate()  # each saves where it is, as this process would do

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for child in children:
            child.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return max(abs(child.exitcode or 0) for child in children)


def _one_of_several(arguments: argparse.Namespace, threads: int) -> None:
    from smile_fast.data.processes import end_with_parent

    end_with_parent()
    try:
        sys.exit(_work(arguments, threads))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
