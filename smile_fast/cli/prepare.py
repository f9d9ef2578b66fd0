"""``smile-fast prepare``: from a raw dataset to the fast store."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HELP = "check every case and convert it to the fast store"


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
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes (default: one for each CPU that it may use)"
    )
    parser.add_argument(
        "--force", action="store_true", help="convert every case again; replaces another cohort's store"
    )
    parser.add_argument("--skip-broken", action="store_true", help="finish the store without the broken cases")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.dataset import RawDataset
    from smile_fast.data.prepare import prepare
    from smile_fast.data.same_scans import leak_warning, repeat_warning
    from smile_fast.supervision.states import State
    from smile_fast.text_table import listed
    from smile_runtime.volume.pixel_size import range_text

    dataset = RawDataset.open(args.dataset)
    print_unlabelled(dataset.unlabelled)
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
        print(f"note: padding outside of what was measured is read as air in {listed(done.padded)}")
    for doubt, cases in done.doubted.items():
        print(f"warning: {listed(cases)}: {doubt}", file=sys.stderr)
    if done.unseen:
        print(
            f"warning: {args.store}: no training case shows a voxel of {listed(done.unseen)} that training may see, so "
            "it cannot be learned; annotate it in some of them",
            file=sys.stderr,
        )
    training = [info for info in done.store.cases.values() if info.split == "train"]
    in_part = [
        organ
        for organ in dataset.organs
        if organ not in done.unseen and not any(info.states[organ] is State.ANNOTATED for info in training)
    ]
    if in_part:
        print(
            f"warning: {args.store}: {listed(in_part)} is annotated in no training case, only drawn in part; declare "
            "it annotated where it is drawn as a whole",
            file=sys.stderr,
        )
    train, test = (
        [name for name, info in done.store.cases.items() if info.split == split] for split in ("train", "test")
    )
    repeats = (repeat_warning(done.store, cases) for cases in (train, test))
    for warning in filter(None, (leak_warning(done.store, train, test), *repeats)):
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{args.store}: {len(train)} training and {len(test)} held-out cases "
        f"({done.converted} converted, {done.kept} unchanged, {len(done.quarantined)} quarantined), "
        f"{len(dataset.organs)} organs"
    )
    spacings = [info.spacing for info in done.store.cases.values()]  # (z, y, x), mm
    pixels, distances = [side for _, *sides in spacings for side in sides], [z for z, _, _ in spacings]
    print(f"pixels of {range_text(pixels)} mm, slices {range_text(distances)} mm apart")


def print_unlabelled(cases: Sequence[str]) -> None:
    """Print a note about the images of imagesTs that no label map makes a test case, if there are any."""
    from smile_fast.text_table import listed

    if cases:
        print(
            f"note: {len(cases)} images of imagesTs have no label map in labelsTs and are left alone: {listed(cases)}"
        )


def print_empty(empty: Mapping[str, Sequence[str]]) -> None:
    """Print a note for each organ that is declared annotated in cases (organ -> cases) without a voxel of it."""
    from smile_fast.text_table import listed

    for organ, cases in empty.items():
        print(
            f"note: {organ} is declared annotated but has no voxel in {len(cases)} cases "
            f"({listed(cases)}); right if it lies outside the scan, else declare it missing or absent"
        )
