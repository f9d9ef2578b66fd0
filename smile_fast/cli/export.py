"""`smile-fast export`."""

import argparse
import sys
from pathlib import Path

from smile_fast.cli.run_options import add_store, add_threads

HELP = "write a trained run as one self-describing ONNX file, and check it against the network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("output", type=Path, metavar="MODEL.onnx", nargs="?", help="file to write")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16: half the size, for GPUs; int8: a quarter, for CPUs, scales from the run's training cases",
    )
    parser.add_argument(
        "--probabilities",
        choices=("uint8", "float16", "float32"),
        help="also give each organ's probability, as a second output; uint8 is round(255 p)",
    )
    parser.add_argument(
        "--triton-repo", type=Path, metavar="DIR", help="add a model to this repository of NVIDIA Triton"
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="write a folder like a MONAI Bundle")
    add_store(parser)
    parser.add_argument(
        "--device",
        default="auto",
        help="where the network runs to be compared with the file: cpu, cuda, cuda:1, ...; auto takes CUDA when it is "
        "there. The file is compared on the CPU, and on the same GPU too where onnxruntime-gpu is installed",
    )
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export, check, print the certificate."""
    from smile_fast.cli.train import choose_device
    from smile_fast.exporter import Targets, export_run, format_certificate
    from smile_fast.exporter.certificate import organs_not_found
    from smile_fast.training.run import opened

    with opened(arguments.run_folder, arguments.store) as run:
        exported = export_run(
            run,
            Targets(arguments.output, arguments.triton_repo, arguments.bundle),
            precision=arguments.precision,
            probabilities=arguments.probabilities,
            device=choose_device(arguments.device, arguments.threads),
        )
    print(format_certificate(exported))
    if organs := organs_not_found(exported.card.parity):
        print(
            f"warning: the network finds no voxel of {', '.join(organs)} in the checked cases; look at smile-fast "
            "evaluate, it may have to be trained longer",
            file=sys.stderr,
        )
