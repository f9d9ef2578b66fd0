"""``smile-fast prepare``: from a raw dataset to the fast store."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smile_fast.data.dataset import RawDataset
    from smile_fast.data.prepare import Prepared, ShardDone
    from smile_runtime.sharding import Shard

HELP = "check every case and convert it to the fast store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    from smile_runtime.sharding import add_shard

    parser.description = (
        "Images must be in Hounsfield units. Interrupt it as you like: the same command goes on where it stopped, and "
        "any number of them on one STORE share the work. Only what is new or changed is converted: a source whose "
        "size, times and inode are those of before is not read again, and of a stored array only its size is looked "
        "at ('smile-fast verify' reads them all). A broken case is described, listed in STORE/quarantine.json and left "
        "out of the store. The store that was there stays as it was until the new one is complete."
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
    parser.add_argument(
        "--rehash",
        action="store_true",
        help="read every source and every stored array again, and convert what is changed or damaged",
    )
    parser.add_argument(
        "--strict", action="store_true", help="leave the store as it was if a case is broken (exit status 2)"
    )
    add_shard(parser, "cases")
    parser.add_argument(
        "--finish",
        action="store_true",
        help="convert nothing: complete the store that shards have made, or say what is missing",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.data.dataset import RawDataset
    from smile_fast.data.prepare import finish, prepare, prepare_shard
    from smile_runtime.errors import InputError

    if args.finish:
        for option in ("shard", "force", "rehash", "workers"):
            if getattr(args, option):
                raise InputError(f"--finish: converts nothing, so it does not go with --{option}; leave one out")
    dataset = RawDataset.open(args.dataset)
    print_unlabelled(dataset.unlabelled)
    if args.finish:
        print_done(args.store, dataset, finish(dataset, args.store, annotations=args.annotations, strict=args.strict))
        return
    options = {
        "annotations": args.annotations,
        "workers": args.workers,
        "force": args.force,
        "rehash": args.rehash,
        "strict": args.strict,
        "note": lambda text: print(f"note: {text}"),
    }
    if args.shard is None:
        print_done(args.store, dataset, prepare(dataset, args.store, **options))
    else:
        print_shard(args.store, args.shard, prepare_shard(dataset, args.store, args.shard, **options))


def print_shard(store: Path, shard: "Shard", done: "ShardDone") -> None:
    """Print what a shard did, and what its store still lacks."""
    from smile_fast.text_table import listed

    if done.broken:
        print(f"warning: {store}: {len(done.broken)} cases of shard {shard} are broken", file=sys.stderr)
    lacks = (
        f"{len(done.missing)} of {done.cases} cases are still to be converted ({listed(done.missing)})"
        if done.missing
        else f"none of the {done.cases} cases is left to do, 'smile-fast prepare --finish' completes the store"
    )
    print(
        f"{store}: shard {shard}: {done.converted} converted, {done.kept} unchanged, {len(done.broken)} broken; {lacks}"
    )


def print_done(store: Path, dataset: "RawDataset", done: "Prepared") -> None:
    """Print what has to be known of a store that is complete."""
    from smile_fast.text_table import listed
    from smile_runtime.volume.pixel_size import range_text

    print_empty(done.empty)
    if done.padded:
        print(f"note: padding outside of what was measured is read as air in {listed(done.padded)}")
    for warning in _warnings(store, dataset, done):
        print(f"warning: {warning}", file=sys.stderr)
    infos = done.store.cases.values()
    splits = [info.split for info in infos]
    print(
        f"{store}: {splits.count('train')} training and {splits.count('test')} held-out cases "
        f"({done.converted} converted, {done.kept} unchanged, {len(done.quarantined)} quarantined), "
        f"{len(dataset.organs)} organs"
    )
    spacings = [info.spacing for info in infos]  # (z, y, x), mm
    pixels, distances = [side for _, *sides in spacings for side in sides], [z for z, _, _ in spacings]
    print(f"pixels of {range_text(pixels)} mm, slices {range_text(distances)} mm apart")


def _warnings(store: Path, dataset: "RawDataset", done: "Prepared") -> list[str]:
    """What may spoil a training on the store."""
    from smile_fast.data.same_scans import leak_warning, repeat_warning
    from smile_fast.data.store import QUARANTINE
    from smile_fast.supervision.states import State
    from smile_fast.text_table import listed

    cases = done.store.cases
    train, test = ([name for name, info in cases.items() if info.split == split] for split in ("train", "test"))
    in_part = [
        organ
        for organ in dataset.organs
        if organ not in done.unseen and not any(cases[name].states[organ] is State.ANNOTATED for name in train)
    ]
    found = [f"{listed(names)}: {doubt}" for doubt, names in done.doubted.items()]
    if done.unseen:
        found.append(
            f"{store}: no training case shows a voxel of {listed(done.unseen)} that training may see, so it cannot be "
            "learned; annotate it in some of them"
        )
    if in_part:
        found.append(
            f"{store}: {listed(in_part)} is annotated in no training case, only drawn in part; declare it annotated "
            "where it is drawn as a whole"
        )
    found += filter(
        None, (leak_warning(done.store, train, test), *(repeat_warning(done.store, one) for one in (train, test)))
    )
    if done.quarantined:
        found.append(
            f"{store}: {len(done.quarantined)} of {len(cases) + len(done.quarantined)} cases are broken and left out, "
            f"see {store / QUARANTINE}"
        )
    return found


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
