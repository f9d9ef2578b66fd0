"""Options that the commands about a trained run share."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smile_runtime.errors import InputError
from smile_runtime.sharding import add_shard

if TYPE_CHECKING:
    from smile_fast.training.run import Run


def add_store(parser: argparse.ArgumentParser, runs: str = "RUN") -> None:
    """Declare --store, for a store that was moved after the training."""
    parser.add_argument(
        "--store",
        type=Path,
        metavar="STORE",
        help=f"where the store of {runs} is now, if it was moved after the training",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Declare ``--threads``."""
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads (0: OMP_NUM_THREADS if it is set, else the CPUs that it may use)",
    )


def add_shares(parser: argparse.ArgumentParser, what: str, finish: str) -> None:
    """Declare ``--shard`` and ``--finish``.

    Args:
        parser: of the command.
        what: what is shared out, a plural noun.
        finish: what --finish does when all shares are done.
    """
    add_shard(parser, what)
    parser.add_argument(
        "--finish", action="store_true", help=f"{finish} when all shares are done, or say what is missing"
    )


def refuse_shard_and_finish(arguments: argparse.Namespace) -> None:
    """Refuse both at once."""
    if arguments.shard is not None and arguments.finish:
        raise InputError("--finish: puts together what all shares did; leave --shard out")


def device_of(arguments: argparse.Namespace) -> str:
    """What --device says to this process: those that torchrun has started have a GPU each.

    Raises:
        InputError: torchrun has started several processes, and --device names one GPU for all of them.
    """
    from smile_fast.training.launch import Launch

    name: str = arguments.device
    return name if arguments.shard is None else Launch.of_environment().device(name)


def warn_of_unfinished(run: "Run", but: int | None = None) -> None:
    """Say which rounds of a run were begun by shares and not finished; `but` is the one that is worked on now."""
    from smile_fast.training.rounds import unfinished_rounds

    for number in unfinished_rounds(run.rounds_path):
        if number != but:
            print(
                f"warning: {run.path}: round {number} is unfinished; 'smile-fast relabel {run.path} --round {number} "
                f"--finish' says what it lacks, --undo {number - 1} drops it",
                file=sys.stderr,
            )
