"""``smile-predict``: one command, no torch."""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from smile_runtime import __version__
from smile_runtime.arguments import Parser
from smile_runtime.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``smile-predict``.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        Exit status: 0, 2 after bad input (with one sentence on standard error), 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
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
        description="Segment a CT scan with a model exported by smile-fast. The label map lies on the scan's own grid.",
    )
    parser.add_argument("model", help="the exported model, an .onnx file")
    parser.add_argument("scan", help="the CT scan in Hounsfield units, .nii.gz or .nii, in any orientation")
    parser.add_argument(
        "-o", "--output", required=True, metavar="LABELS", help="the label map to write, .nii.gz or .nii"
    )
    parser.add_argument("--organs-json", metavar="PATH", help="also write what the label values mean")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--batch", type=int, metavar="N", help="slices per inference (default: by their size)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("--version", action="version", version=f"smile-predict {__version__}")
    return parser


def _predict(args: argparse.Namespace) -> None:
    from smile_runtime.predict import Predictor  # not at the top: --help answers before onnxruntime is loaded

    predictor = Predictor(args.model, args.threads, args.provider, batch=args.batch)
    prediction = predictor.predict_file(args.scan, args.output, organs_json=args.organs_json, show_progress=True)
    width = max(len(organ) for organ in ("organ", *prediction.volumes_ml))
    print(f"{'organ':<{width}}  {'ml':>9}")
    for organ, millilitres in prediction.volumes_ml.items():
        print(f"{organ:<{width}}  {millilitres:>9.1f}")
    print(f"wrote {prediction.path} in {prediction.seconds:.1f} s")


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    """End like an error does, so that temporary files are removed."""
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    sys.exit(main())
