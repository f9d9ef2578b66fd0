"""``smile-fast audit``: what a training on the labels as they are would learn wrong."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smile_fast.supervision.audit import Audit

HELP = "the label audit: what a training that takes missing for background would learn wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Per organ: alpha, the share of missing annotations, in cases and in the slices and voxels of these; beta, the "
        "share of voxels that the organ occupies; the labels of a training that takes missing for background (base) "
        "and of SMILE, in voxels: right ones (TP, TN), organ voxels called background (FN), those that SMILE ignores; "
        "epsilon, the share of voxels that SMILE keeps as certain negatives although the organ's annotation is missing "
        "there. TP/FN is inf where no label is wrong, and ? where that cannot be known. Measured where the missing "
        "annotations are hidden ones, else estimated from alpha and beta. Below the table the same in words, and which "
        "organs seem to be drawn in a part of their slices only."
    )
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="nnU-Net raw folder, or a prepared store")
    parser.add_argument("--annotations", metavar="FILE", type=Path, help="default: DATASET/annotations.csv")
    parser.add_argument(
        "--split", choices=("train", "test", "all"), default="train", help="cases to audit (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there as well")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from smile_fast.cli.prepare import print_empty
    from smile_fast.report.audit_text import audit_record, audit_sentence, audit_table
    from smile_runtime.io.files import check_writable, write_json

    if args.json is not None:
        check_writable(args.json)
    is_store = (args.dataset / "index.json").is_file() and not (args.dataset / "dataset.json").exists()
    result = _audit_store(args) if is_store else _audit_dataset(args)
    if args.json is not None:
        write_json(args.json, audit_record(result))
    print(f"{len(result.cases)} cases, {result.voxels:,} voxels\n")
    print(audit_table(result))
    print()
    for row in result.organs:
        print(audit_sentence(row))
    print_empty(result.empty)


def _audit_dataset(args: argparse.Namespace) -> "Audit":
    from smile_fast.data.annotations import FILE_NAME, read_annotations
    from smile_fast.data.dataset import RawDataset
    from smile_fast.data.voxel_counts import count_cases
    from smile_fast.supervision.audit import audit
    from smile_runtime.io.files import refuse_overwrite

    dataset = RawDataset.open(args.dataset)
    path = args.annotations or args.dataset / FILE_NAME
    if args.json is not None:
        refuse_overwrite(args.json, [*dataset.files(), path])
    declarations = read_annotations(path, dataset.names(), dataset.organs)
    cases = [case for case in dataset.cases if args.split in ("all", case.split)]
    return audit(count_cases(dataset, cases), declarations, dataset.organs)


def _audit_store(args: argparse.Namespace) -> "Audit":
    from smile_fast.data.folder_lock import reading
    from smile_fast.data.store import Store
    from smile_fast.supervision.audit import audit_store
    from smile_runtime.io.files import refuse_overwrite
    from smile_runtime.progress import progress

    with reading(args.dataset):
        store = Store.open(args.dataset)
        if args.json is not None:
            refuse_overwrite(args.json, [*store.files(), *([] if args.annotations is None else [args.annotations])])
        declarations = store.declarations() if args.annotations is None else store.read_declarations(args.annotations)
        cases = [name for name, info in store.cases.items() if args.split in ("all", info.split)]
        return audit_store(store, declarations, progress(cases, total=len(cases), label="reading label maps"))
