"""``smile-fast phantom``: a synthetic abdominal CT cohort."""

import argparse
from pathlib import Path

from smile_runtime.threads import usable_cpus

HELP = "make a synthetic abdominal CT cohort"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; new or empty")
    parser.add_argument("--train", type=int, default=32, help="training cases (default: %(default)s)")
    parser.add_argument("--test", type=int, default=8, help="held-out cases (default: %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="rows and columns of a slice (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=24, help="slices of a case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: %(default)s)")
    parser.add_argument(
        "--organs",
        default="liver,pancreas,stomach",
        help="labelled organs with commas between them, in the order of their values (default: %(default)s)",
    )
    parser.add_argument(
        "--labelmaps",
        metavar="DIR",
        type=Path,
        help="paint the label maps of DIR (*.nii.gz and labels.json) instead of procedural anatomy",
    )
    parser.add_argument(
        "--synthetic-organs",
        metavar="K",
        type=int,
        default=0,
        help="label K ellipsoids organ_01, organ_02, ... instead of --organs, to measure what many organs cost",
    )
    parser.add_argument(
        "--sources",
        metavar="N",
        type=int,
        default=0,
        help="deal the cases out to N sources with scanners that differ; each draws some organs of its training cases",
    )
    parser.add_argument(
        "--source-organs",
        metavar="ORGANS",
        default="",
        help="what each source draws: 'liver;pancreas;liver,stomach' (default: the organs in turn)",
    )
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="processes (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a phantom cohort that stands in OUT")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.phantom import PhantomOptions, write_cohort
    from smile_fast.data.phantom.anatomy import synthetic_names

    options = PhantomOptions(
        train=args.train,
        test=args.test,
        size=args.size,
        slices=args.slices,
        seed=args.seed,
        organs=synthetic_names(args.synthetic_organs) if args.synthetic_organs else _names(args.organs),
        synthetic=args.synthetic_organs != 0,
        labelmaps=args.labelmaps,
        sources=args.sources,
        source_organs=tuple(map(_names, args.source_organs.split(";"))) if args.source_organs else (),
    )
    write_cohort(args.out, options, workers=args.workers, force=args.force)


def _names(text: str) -> tuple[str, ...]:
    from smile_runtime.names import normal_name

    return tuple(name for organ in text.split(",") if (name := normal_name(organ)))
