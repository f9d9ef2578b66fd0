"""`smile-fast verify`."""

import argparse
import sys
from pathlib import Path

HELP = "read every byte of a store or a run, and compare it with the checksums that it was written with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Reads the index, every case.json, every image and label map; of a run its records, checkpoints, weights and "
        "rounds. What is not as it was written is named, one "
        "sentence each, with what to do about it (exit status 2). Nothing is changed."
    )
    parser.add_argument("folder", type=Path, metavar="STORE|RUN", help="a prepared store, or the folder of a run")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes (default: one for each CPU that it may use)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Verify, print what was found."""
    from smile_fast.training.run_record import CONFIG

    if (arguments.folder / CONFIG).exists():
        return _verify_run(arguments.folder)
    return _verify_store(arguments)


def _verify_run(folder: Path) -> int:
    from smile_fast.training.integrity import check_run

    faults = list(check_run(folder))
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{folder}: {f'{len(faults)} faults, see above' if faults else 'all as it was written'}")
    return 2 if faults else 0


def _verify_store(arguments: argparse.Namespace) -> int:
    from smile_fast.data.verify import verify_store
    from smile_fast.text_table import listed

    found = verify_store(arguments.folder, arguments.workers)
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
