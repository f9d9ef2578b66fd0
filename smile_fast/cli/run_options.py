"""Options that the commands about a trained run share."""

import argparse
from pathlib import Path


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
