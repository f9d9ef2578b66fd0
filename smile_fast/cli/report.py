"""`smile-fast report`."""

import argparse
import sys
from pathlib import Path

from smile_fast.cli.run_options import add_store
from smile_runtime.errors import InputError

HELP = "write one self-contained HTML page about one or several runs, or about a sweep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "run_folders", nargs="*", type=Path, metavar="RUN", help="run folders; several are compared side by side"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="HTML",
        help="page to write (default: report.html in the first RUN or in OUT)",
    )
    parser.add_argument(
        "--sweep", type=Path, metavar="OUT", help="folder of a sweep: its curves and table instead of those of runs"
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
    if arguments.sweep is not None:
        if arguments.run_folders or arguments.review or arguments.store:
            raise InputError("--sweep: is a page of its own; leave RUN, --review and --store out")
        written = [_sweep(arguments)]
    elif arguments.run_folders:
        written = _runs(arguments)
    else:
        raise InputError("--sweep: neither it nor a RUN is given; see smile-fast report --help")
    for path in written:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _sweep(arguments: argparse.Namespace) -> Path:
    from smile_fast.report.sweep_page import write_sweep_report

    output: Path = arguments.output or arguments.sweep / "report.html"
    write_sweep_report(arguments.sweep, output)
    return output


def _runs(arguments: argparse.Namespace) -> list[Path]:
    from smile_fast.report.builder import write_report

    return write_report(
        arguments.run_folders,
        arguments.output or arguments.run_folders[0] / "report.html",
        store=arguments.store,
        review=arguments.review,
        say=lambda text: print(f"report: {text}", file=sys.stderr),
    )
