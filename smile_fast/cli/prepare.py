"""``smile-fast prepare``: from a raw dataset to the fast store."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HELP = "check every case and convert it to the fast store"
_SHOWN = 8  # names of cases a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Images must be in Hounsfield units. Interrupt it as you like: the same command goes on where it stopped. A "
        "broken case is described, listed in STORE/quarantine.json, and keeps the store unfinished (exit status 2) "
        "unless you pass --skip-broken."
    )
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="nnU-Net raw folder with annotations.csv")
    parser.add_argument("store", metavar="STORE", type=Path, help="folder to write; new, or to be continued")
    parser.add_argument("--annotations", metavar="FILE", type=Path, help="default: DATASET/annotations.csv")
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: one a CPU)")
    parser.add_argument(
        "--force", action="store_true", help="convert every case again; replaces another cohort's store"
    )
    parser.add_argument("--skip-broken", action="store_true", help="finish the store without the broken cases")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.dataset import RawDataset
    from smile_fast.data.prepare import prepare

    dataset = RawDataset.open(args.dataset)
    done = prepare(
        dataset,
        args.store,
        annotations=args.annotations,
        workers=args.workers,
        force=args.force,
        skip_broken=args.skip_broken,
    )
    print_empty(done.empty)
    if done.padded:
        print(f"note: padding outside of what was measured is read as air in {_listed(done.padded)}")
    for warning, cases in done.doubted.items():
        print(f"warning: {_listed(cases)}: {warning}", file=sys.stderr)
    train = sum(info.split == "train" for info in done.store.cases.values())
    print(
        f"{args.store}: {train} training and {len(done.store.cases) - train} held-out cases "
        f"({done.converted} converted, {done.kept} unchanged, {len(done.quarantined)} quarantined), "
        f"{len(dataset.organs)} organs"
    )


def print_empty(empty: Mapping[str, Sequence[str]]) -> None:
    """Print a note for each organ that is declared annotated in cases (organ -> cases) without a voxel of it."""
    for organ, cases in empty.items():
        print(
            f"note: {organ} is declared annotated but has no voxel in {len(cases)} cases "
            f"({_listed(cases)}); right if it lies outside the scan, else declare it missing or absent"
        )


def _listed(cases: Sequence[str]) -> str:
    more = f", ... ({len(cases) - _SHOWN} more)" if len(cases) > _SHOWN else ""
    return ", ".join(cases[:_SHOWN]) + more
