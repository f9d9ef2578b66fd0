"""`smile-fast verify`."""

import argparse
import sys
from pathlib import Path

HELP = "read every file of a store or a run, and compare it with the checksums that it was written with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Of a store: the index, every case.json, every image and label map. Of a run: its records, checkpoints, "
        "weights, scores and pseudo-labels; its store is verified on its own. What is not as it was written is named, "
        "one sentence each, with what to do about it (exit status 2). Nothing is changed."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a prepared store, or the folder of a run")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes (default: one for each CPU that it may use)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Verify, print what was found."""
    from smile_fast.text_table import listed

    if (arguments.folder / "config.json").exists():
        from smile_fast.evaluation.verify import verify_run as verify
    else:
        from smile_fast.data.verify import verify_store as verify
    found = verify(arguments.folder, arguments.workers)
    for fault in found.faults:
        print(f"error: {fault}", file=sys.stderr)
    if found.leftovers:
        names = listed([str(path.relative_to(arguments.folder)) for path in found.leftovers])
        print(f"note: {len(found.leftovers)} files that nothing names: {names}")
    if found.newer:
        print(f"note: converted since the index was written, 'smile-fast prepare' puts it in: {listed(found.newer)}")
    verdict = f"{len(found.faults)} faults, see above" if found.faults else "all as it was written"
    print(f"{arguments.folder}: {found.files} files, {found.size / 1e9:.2f} GB: {verdict}")
    return 2 if found.faults else 0
