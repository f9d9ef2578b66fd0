"""`smile-fast figures`."""

import argparse
from pathlib import Path

from smile_fast.cli.run_options import add_store

HELP = "write the figures and the table of a sweep: Dice over alpha, rounds, predictions, labels against formulas"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of a sweep")
    parser.add_argument("--alpha", type=float, default=0.7, help="of the cells that are drawn (default: %(default)s)")
    parser.add_argument("--fold", type=int, default=0, help="of the cells that are drawn (default: %(default)s)")
    parser.add_argument("--rounds-of", default="smiler", metavar="METHOD", help="whose rounds (default: %(default)s)")
    add_store(parser, "all cells")


def run(arguments: argparse.Namespace) -> None:
    """Write what the finished cells allow."""
    from contextlib import ExitStack

    from smile_fast.sweep.cell import RESULT
    from smile_fast.sweep.grid import Cell
    from smile_fast.sweep.rounds_figure import draw_rounds
    from smile_fast.sweep.slices_figure import draw_predictions
    from smile_fast.sweep.table1 import write_table1
    from smile_fast.sweep.tables import write_tables
    from smile_fast.training.run import opened
    from smile_runtime.errors import InputError

    out = arguments.out
    written = write_tables(out)
    with ExitStack() as held:
        runs = {}
        for method in dict.fromkeys(("baseline", "smile", arguments.rounds_of)):
            path = out / Cell(method, arguments.alpha, arguments.fold).folder
            if (path / RESULT).exists():
                runs[method] = held.enter_context(opened(path, arguments.store))
        if not runs:
            raise InputError(
                f"{out}: has no finished cell of alpha {arguments.alpha:g} and fold {arguments.fold}; sweep first, or "
                "name others with --alpha and --fold"
            )
        written += [draw_predictions(runs, out), write_table1(next(iter(runs.values())), out)]
        if arguments.rounds_of in runs:
            written += draw_rounds(runs[arguments.rounds_of], out)
    for path in written:
        print(f"wrote {path}")
