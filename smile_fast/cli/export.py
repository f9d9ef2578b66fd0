"""`smile-fast export`."""

import argparse
from pathlib import Path

HELP = "write a trained run as one self-describing ONNX file, and check it against the network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("output", type=Path, metavar="MODEL.onnx", help="file to write")
    parser.add_argument(
        "--probabilities", action="store_true", help="also give each organ's probability, as a second output"
    )


def run(arguments: argparse.Namespace) -> None:
    """Export, check, print the certificate."""
    from smile_fast.export import export_run, format_certificate
    from smile_fast.training.run import Run

    exported = export_run(Run.open(arguments.run_folder), arguments.output, probabilities=arguments.probabilities)
    print(format_certificate(exported))
