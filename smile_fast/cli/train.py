"""`smile-fast train`."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from smile_fast.training.config import TrainConfig
from smile_runtime.errors import InputError

HELP = "train the baseline, SMILE or SMILEr on a prepared store"

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

# Help of the settings, by group; names, types and defaults are those of TrainConfig.
_SETTINGS = {
    "method": {
        "method": "baseline (softmax, missing = background), smile, or smiler (smile and relabelling rounds)",
        "policy": "which labels the sigmoid heads trust: smile, channel-drop or naive",
        "rounds": "T, number of relabelling rounds of smiler",
        "gamma_max": "share of the positive candidates that the last round takes",
        "scope": "select per volume or per slice",
        "round_share": "length of a round relative to the first stage",
        "pseudo_negative": "take a pseudo-label as a negative for the other missing organs",
    },
    "network": {
        "backbone": "resnet18, resnet34, resnet50 or resnet101",
        "output_stride": "8 or 16 pixels per feature pixel",
        "width": "channels of the first stage (64: the published network)",
        "rates": "atrous rates of the ASPP (default: those published for the output stride)",
        "channels": "neighbouring slices that the network sees, odd",
        "window": "lowest and highest HU that the network can tell apart",
    },
    "schedule": {
        "epochs": "passes over the training slices in the first stage",
        "budget": "training time instead of epochs, e.g. 90s, 10m or 2h, for all stages together",
        "batch_size": "slices per step",
        "optimizer": "adamw or sgd",
        "lr": "peak learning rate (default 1e-3 for adamw, 1e-2 for sgd)",
        "weight_decay": "weight decay of the convolutions",
        "warmup": "share of a stage over which the learning rate rises",
        "ema": "decay of the averaged weights that are evaluated and exported (0: off)",
        "amp": "bfloat16 arithmetic: auto (on CUDA), off or bfloat16",
        "seed": "seed of start weights, sampling and augmentation",
    },
    "data": {
        "crop_size": "patch height and width in pixels (0: the largest slice, at most 512)",
        "organ_share": "share of a batch that is drawn because it shows some organ",
        "flip": "probability of a left-right mirror image",
        "rotate": "largest rotation, degrees",
        "scale": "largest relative change of size",
        "translate": "largest shift, share of the patch",
        "intensity": "largest relative change of contrast and brightness",
        "noise": "largest standard deviation of added noise, HU",
        "fold": "validation fold, from 0",
        "folds": "folds of a cross-validation (0: train on all cases of the training split)",
        "validate_every": "epochs between two looks at the validation cases (0: never)",
        "tensorboard": "also write TensorBoard events",
        "body_crop": "leave the air around the body out, in training and then in production",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "store",
        type=Path,
        metavar="STORE",
        help="folder that smile-fast prepare wrote; RUN's own with --resume, wherever it is now",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of the run, new unless --resume")
    parser.add_argument("--annotations", type=Path, help="declarations to use instead of the store's")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="RUN|FILE",
        help="what to start from: a trained run, or a .safetensors file (a run's, or one with ImageNet or COCO names)",
    )
    parser.add_argument("--resume", action="store_true", help="go on where RUN stopped, under its own settings")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes CUDA when it is there")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as many as there are)")
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    for title, settings in _SETTINGS.items():
        group = parser.add_argument_group(title)
        for name, text in settings.items():
            # An option that is not given stays out of the namespace, so that --resume can tell.
            option = _option(name, defaults[name]) | {"default": argparse.SUPPRESS}
            group.add_argument(f"--{name.replace('_', '-')}", help=_help(text, defaults[name]), **option)


def run(arguments: argparse.Namespace) -> int:
    """Create or open the run, and train it."""
    from smile_fast.training.loop import Interrupted, train
    from smile_fast.training.metrics import read_metrics

    device = choose_device(arguments.device, arguments.threads)
    run = _open_run(arguments) if arguments.resume else _create_run(arguments, str(device))
    try:
        train(run, weights=arguments.weights, resume=arguments.resume, device=device)
    except (InputError, KeyboardInterrupt):
        # Nothing was trained: the folder would only stand in the way of the next try.
        if not (arguments.resume or run.model_path.exists() or run.checkpoint_path.exists() or read_metrics(run)):
            run.discard()
        raise
    except Interrupted as stopped:
        print(f"stopped; go on with: smile-fast train {arguments.store} {arguments.run_folder} --resume")
        return 128 + stopped.number  # what a shell says of a process that ended by this signal
    print(f"trained: {run.model_path}")
    return 0


def choose_device(name: str, threads: int = 0) -> Any:
    """The torch device of an option value, and the number of CPU threads set."""
    import torch

    if threads < 0:
        raise InputError(f"--threads must be 0 or more, {threads} was given.")
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name} is not a device; give cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; give cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} was asked for, but torch sees no CUDA device; use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return device


def parse_budget(text: str) -> float:
    """Seconds of "90s", "10m", "2h" or a plain number of seconds."""
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 10m or 2h") from None
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 10m or 2h")
    return seconds


def _help(text: str, default: Any) -> str:
    if default is None or default == () or isinstance(default, bool):
        return text
    shown = " ".join(f"{value:g}" for value in default) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def _option(name: str, default: Any) -> dict[str, Any]:
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if name == "budget":
        return {"type": parse_budget, "metavar": "TIME"}
    if name == "window":
        return {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
    if name == "rates":
        return {"type": int, "nargs": "+", "metavar": "RATE"}
    kind = float if default is None else type(default)
    return {"type": kind, "metavar": kind.__name__.upper()}


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    names = [name for group in _SETTINGS.values() for name in group]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _create_run(arguments: argparse.Namespace, device: str) -> Any:
    from smile_fast.data.store import Store
    from smile_fast.training.run import Run

    config = TrainConfig.from_json(_given(arguments))
    store = Store.open(arguments.store)
    declarations = store.declarations()
    if arguments.annotations is not None:
        declarations = store.read_declarations(arguments.annotations)
    return Run.create(arguments.run_folder, config, store, declarations, device)


def _open_run(arguments: argparse.Namespace) -> Any:
    from smile_fast.training.run import Run

    if arguments.weights is not None or arguments.annotations is not None:
        raise InputError("--resume goes on with RUN's own weights and annotations: leave --weights and --annotations.")
    if given := _given(arguments):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"--resume goes on under RUN's own settings: leave {options} out, or train a new run.")
    return Run.open(arguments.run_folder, arguments.store)
