"""`smile-fast report`."""

import argparse
import sys
from pathlib import Path

from smile_fast.cli.run_options import add_store

HELP = "write one self-contained HTML page about one or several runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "run_folders", nargs="+", type=Path, metavar="RUN", help="run folders; several are compared side by side"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="HTML", help="page to write (default: report.html in the first RUN)"
    )
    parser.add_argument(
        "--review",
        type=Path,
        metavar="CSV",
        help="table of what a human should look at first in each relabelling round (default: beside the page, with "
        ".review.csv for .html)",
    )
    add_store(parser, "all RUNs")


def run(arguments: argparse.Namespace) -> None:
    """Write the page."""
    from smile_fast.report.builder import write_report

    output = arguments.output or arguments.run_folders[0] / "report.html"
    written = write_report(
        arguments.run_folders,
        output,
        store=arguments.store,
        review=arguments.review,
        say=lambda text: print(f"report: {text}", file=sys.stderr),
    )
    for path in written:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
