"""``smile-predict``: one command, no torch."""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from smile_runtime import __version__
from smile_runtime.arguments import Parser
from smile_runtime.errors import InputError
from smile_runtime.sharding import add_shard
from smile_runtime.terminal import print_anything
from smile_runtime.threads import share_machine


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``smile-predict``.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        Exit status: 0, 2 after bad input (with one sentence on standard error for each), 130 after Ctrl-C.
    """
    print_anything()
    args = _parser().parse_args(argv)
    share_machine()  # nothing that looks at it has been imported yet
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _predict(args)
        return 0
    except InputError as error:
        message, status = f"error: {error}", 2
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    # Only here, after the exception and its frames are gone, has a progress bar ended its line.
    print(message.replace("\n", " "), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="smile-predict",
        description="Segment a CT scan, or a folder of them, with a model exported by smile-fast. A label map lies on "
        "its scan's own grid.",
    )
    parser.add_argument("model", help="the exported model, an .onnx file")
    parser.add_argument("scan", help="the scan in Hounsfield units, .nii.gz or .nii, in any orientation, or a folder")
    parser.add_argument(
        *("-o", "--output"),
        required=True,
        metavar="LABELS",
        help="the label map to write, .nii.gz or .nii; for a folder, the folder to write to",
    )
    results = parser.add_argument_group("results")
    results.add_argument("--volumes", metavar="PATH", help="also write the organs' volumes, .csv or .json")
    results.add_argument("--preview", action="store_true", help="also write a picture beside each label map, .png")
    results.add_argument(
        "--organ-table",
        action="append",
        default=[],
        metavar="PATH",
        help="also write what the label values mean: .txt for ITK-SNAP, .ctbl for 3D Slicer, .json as in an "
        "nnU-Net dataset.json (a folder gets organs.label.txt and organs.ctbl without being asked)",
    )
    results.add_argument("--report", metavar="PATH", help="also write what ran, how long and with which result, .json")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--continue", dest="resume", action="store_true", help="keep the label maps of a folder that are complete"
    )
    add_shard(parser, "scans of a folder")
    work.add_argument(
        "--finish",
        action="store_true",
        help="compute nothing: say which scans of a folder have no results yet, or write --report and --volumes of all",
    )
    work.add_argument("--no-crop", action="store_true", help="compute the air around the body too")
    work.add_argument(
        "--largest-component",
        metavar="ORGANS",
        help="keep only the largest connected component of: all, or organ,organ (needs scipy)",
    )
    work.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: OMP_NUM_THREADS if it is set, else the CPUs that it may use)",
    )
    work.add_argument("--batch", type=int, metavar="N", help="slices per inference (default: by their size)")
    work.add_argument(
        "--provider", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="where to compute (default: cpu)"
    )
    parser.add_argument("--version", action="version", version=f"smile-predict {__version__}")
    return parser


def _predict(args: argparse.Namespace) -> None:
    from smile_runtime.predict.commands import predict  # not at the top: --help answers before onnxruntime is loaded

    predict(args)


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    """End like an error does, so that temporary files are removed."""
    sys.exit(128 + signal_number)
