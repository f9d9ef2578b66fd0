"""``smile-fast merge``: one cohort of several datasets."""

import argparse
from pathlib import Path

from smile_fast.cli.import_ import add_making, print_built, split_names

HELP = "one cohort of several datasets: organs by name, what a dataset does not know is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Makes one nnU-Net raw dataset with annotations.csv of several. Organs are matched by name and get new values; "
        "an organ that a dataset does not know is missing in all of its cases. What a dataset's own annotations.csv "
        "says stays as it is; held-out cases stay held out. OUT/sources.csv says where each case comes from. OUT "
        "appears whole or not at all: after an interruption the same command goes on, and where OUT is there already, "
        "made of the same, nothing is done. No input is changed."
    )
    parser.add_argument(
        "datasets", metavar="DATASET", type=Path, nargs="+", help="nnU-Net raw folders; others: smile-fast import first"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument(
        "--map",
        metavar="[DATASET=]FILE",
        action="append",
        default=[],
        help="table (CSV) that brings a dataset's labels to organs: columns name,organ or value,organ (no organ: "
        "background; void: not supervised), and source, a dataset's name, if one table is for all; repeatable",
    )
    parser.add_argument(
        "--all-annotated",
        metavar="DATASET",
        action="append",
        default=[],
        help="a dataset (its folder's name, or *) without annotations.csv in which every organ was drawn in every "
        "case, wherever it exists; repeatable",
    )
    parser.add_argument(
        "--organs", metavar="A,B,...", help="the organs to take, in this order; the others become background"
    )
    parser.add_argument(
        "--prefix", action="store_true", help="DATASET_ before every case's name, not only where two have one name"
    )
    add_making(parser, "a name in OUT, or DATASET/CASE")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.importing.build import build
    from smile_fast.data.importing.merge import plan_merge

    plan = plan_merge(
        args.datasets,
        maps=args.map,
        all_annotated=args.all_annotated,
        organs=split_names(args.organs, "--organs"),
        prefix=args.prefix,
        without=args.without,
    )
    built = build(plan, args.out, link=args.link, workers=args.workers, label="merging cases")
    print_built(args.out, plan, built)
