"""`smile-fast train`."""

import argparse
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from smile_fast.cli.run_options import add_threads, warn_of_unfinished
from smile_fast.models.config import ModelConfig
from smile_fast.settings import Setting, declared, default_of, option_of
from smile_fast.training.config import TrainConfig
from smile_fast.training.curriculum.settings import Brakes
from smile_fast.training.execution import Execution
from smile_fast.training.launch import Launch
from smile_runtime.errors import InputError

_RECORDED = (TrainConfig, Brakes, ModelConfig)  # what a run is; --resume goes on under them
HELP = "train SMILE, SMILEr or a method to compare them with on a prepared store"

# Of the settings, in the order of the help.
_GROUPS = ("method", "curriculum", "network", "schedule", "data", "execution")


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
        "--splits",
        type=Path,
        metavar="FILE",
        help="which cases are train, validation and test, by patient: a CSV file with the columns case,patient,split "
        "(without split: --folds keep the scans of a patient together), or nnU-Net's splits_final.json with --folds "
        "and --fold",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="RUN|FILE",
        help="what to start from: a trained run, or a .safetensors file (a run's, or one with ImageNet or COCO names)",
    )
    parser.add_argument(
        "--fill",
        type=Path,
        metavar="RUN|DIR",
        help="label missing organs once before the training, by a trained run or by any model's label maps CASE.nii.gz "
        "with the store's values; all else is their background then",
    )
    parser.add_argument("--resume", action="store_true", help="go on where RUN stopped, under its own settings")
    parser.add_argument(
        "--resume-if-started",
        action="store_true",
        help="go on if RUN has been started, by the same command, and start it if not: for jobs that are started again",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes CUDA when it is there")
    add_threads(parser)
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser, without: Container[str] = ()) -> None:
    """Declare the settings of a training as options, but for those whose names are left out."""
    options = {name: each for name, each in _options(*_RECORDED, Execution).items() if name not in without}
    used = {entry.group for entry, _ in options.values()}
    groups: dict[str, Any] = {title: parser.add_argument_group(title) for title in _GROUPS if title in used}
    for name, (entry, default) in options.items():
        # An option that is not given stays out of the namespace, so that --resume can tell.
        option = _option(entry, default) | {"default": argparse.SUPPRESS}
        groups[str(entry.group)].add_argument(option_of(name), help=_help(entry.help, default), **option)


def settings_given(arguments: argparse.Namespace) -> tuple[dict[str, Any], Execution]:
    """What the command line says of a run's settings, and how it is executed."""
    return _given(arguments, *_RECORDED), Execution(**_given(arguments, Execution))


def run(arguments: argparse.Namespace) -> int:
    """Create or open the run, and train it: alone, or as one of the processes that torchrun has started."""
    launch = Launch.of_environment()
    try:
        execution = Execution(**_given(arguments, Execution))
    except InputError:
        if launch.rank == 0:
            raise
        return 2
    if launch.world == 1:
        from smile_fast.training.ranks import ALONE

        device = choose_device(arguments.device, arguments.threads)
        return _lead(arguments, device, execution, ALONE, launch.attempt)
    launch.hush()
    from smile_fast.training.process_group import together

    def work(ranks: Any) -> int:
        device = choose_device(launch.device(arguments.device), arguments.threads)
        if ranks.first:
            return _lead(arguments, device, execution, ranks, launch.attempt)
        return _follow(arguments, device, execution, ranks)

    return together(launch, arguments.device, execution.rank_timeout, work)


def _lead(arguments: argparse.Namespace, device: Any, execution: Execution, ranks: Any, attempt: int) -> int:
    """Create or open the run, and train it: what a process does that is alone, or rank 0 of several.

    A run that torchrun's first attempt has started is gone on with by the next one.
    """
    from smile_fast.data.folder_lock import locked, reading
    from smile_fast.training.interrupt import Interrupted
    from smile_fast.training.loop import train
    from smile_fast.training.run_record import is_run
    from smile_fast.training.step_graph import no_graph

    with reading(arguments.store):  # no `prepare` removes a file of it while it is read
        started = (arguments.resume_if_started or attempt > 0) and is_run(arguments.run_folder)
        go_on = arguments.resume or started
        run = _open_run(arguments) if go_on else _create_run(arguments, str(device), ranks)
        warn_of_unfinished(run)
        ranks.check_batch(run.config)
        print(f"pixels: {run.pixel_space}", file=sys.stderr)
        reason = no_graph(device, execution.graph, ranks.world)
        if reason and (device.type == "cuda" or hasattr(arguments, "graph")):
            print(f"graph: none ({reason}); steps run operation by operation", file=sys.stderr)
        with locked(run.path):
            try:
                ranks.opened()
                train(run, resume=go_on or run.has_checkpoint, device=device, execution=execution, ranks=ranks)
            except (InputError, KeyboardInterrupt):
                if not (go_on or run.has_learned):  # it would only stand in the way of the next try
                    run.discard()
                raise
            except Interrupted as stopped:
                print(f"stopped; go on with: smile-fast train {arguments.store} {arguments.run_folder} --resume")
                return 128 + stopped.number  # what a shell says of a process that ended by this signal
    print(f"trained: {run.model_path}")
    return 0


def _follow(arguments: argparse.Namespace, device: Any, execution: Execution, ranks: Any) -> int:
    """Train a run with rank 0, which has created or opened it, and which alone writes."""
    from smile_fast.data.folder_lock import reading
    from smile_fast.training.loop import train
    from smile_fast.training.run import Run

    ranks.opened()
    with reading(arguments.store):
        run = Run.open(arguments.run_folder, arguments.store)
        resume = arguments.resume or run.has_checkpoint
        train(run, resume=resume, device=device, execution=execution, ranks=ranks)
    return 0


def choose_device(name: str, threads: int = 0) -> Any:
    """The torch device of an option value, and the number of CPU threads set."""
    import torch

    if threads < 0:
        raise InputError(f"--threads: {threads} cannot be used; give 0 or more")
    if threads:
        torch.set_num_threads(threads)
    if name.startswith("auto"):
        name = name.replace("auto", "cuda") if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: {name} is no device; give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: {name} is not supported; give cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device: {name} was asked for, but torch sees no CUDA device; give cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"--device: torch sees {count} CUDA devices, no {name}; give cuda:0 to cuda:{count - 1}")
    return device


def _options(*classes: type) -> dict[str, tuple[Setting, Any]]:
    """By name: the declaration and the default of every setting of some classes that is an option."""
    return {
        name: (entry, default_of(cls, name))
        for cls in classes
        for name, entry in declared(cls).items()
        if entry.group is not None
    }


def _help(text: str, default: Any) -> str:
    if default is None or default == () or isinstance(default, bool):
        return text
    shown = " ".join(f"{value:g}" for value in default) if isinstance(default, tuple) else default
    shown = f"{shown:g}" if isinstance(shown, float) else shown
    return f"{text} (default: {shown})"


def _option(entry: Setting, default: Any) -> dict[str, Any]:
    if entry.kind is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    # Choices are named here and checked with all other rules, by TrainConfig.
    choices = f"{{{','.join(map(str, entry.choices))}}}" if entry.choices else None
    option: dict[str, Any] = {
        "type": entry.parse or entry.kind,
        "metavar": entry.metavar or choices or entry.kind.__name__.upper(),
    }
    return option if entry.count is None else option | {"nargs": entry.count}


def _given(arguments: argparse.Namespace, *classes: type) -> dict[str, Any]:
    """The settings of some classes that the command line names."""
    return {name: getattr(arguments, name) for name in _options(*classes) if hasattr(arguments, name)}


def _create_run(arguments: argparse.Namespace, device: str, ranks: Any) -> Any:
    from smile_fast.data.store import Store
    from smile_fast.training.fill import fill
    from smile_fast.training.run import Run
    from smile_fast.training.weights import start_from

    def begin(run: Run) -> None:
        if arguments.weights is not None:
            print(f"weights: {start_from(run, arguments.weights)}")
        if arguments.fill is not None:
            fill(run, arguments.fill, choose_device(arguments.device, arguments.threads))

    config = TrainConfig.from_options(_given(arguments, *_RECORDED))
    if not config.last_round and (brakes := _given(arguments, Brakes)):
        option = option_of(next(iter(brakes)))
        raise InputError(f"{option}: {config.method} has no relabelling rounds; leave it out, or take --method smiler")
    if config.batch_norm == "frozen" and arguments.weights is None:
        raise InputError(
            "--batch-norm: frozen keeps statistics that only --weights brings; give --weights, or take synchronised"
        )
    ranks.check_batch(config)
    store = Store.open(arguments.store)
    declarations = store.declarations()
    if arguments.annotations is not None:
        declarations = store.read_declarations(arguments.annotations)
    return Run.create(
        arguments.run_folder,
        config,
        store,
        declarations,
        device,
        begin,
        splits_file=read_splits(arguments.splits, store),
    )


def read_splits(path: Path | None, store: Any) -> Any:
    """What --splits says, None where it is not given; cases that the store lacks are told of."""
    from smile_fast.data.splits import SplitsFile
    from smile_fast.text_table import listed

    if path is None:
        return None
    file = SplitsFile.read(path)
    if strangers := file.strangers(store.cases):
        print(f"note: {path} names cases that the store does not have: {listed(strangers)}", file=sys.stderr)
    return file


def _open_run(arguments: argparse.Namespace) -> Any:
    from smile_fast.training.run import Run

    if not arguments.resume:  # the command that has started it, once more
        run = Run.open(arguments.run_folder, arguments.store)
        _refuse_other_settings(run, arguments)
        return run
    if any(path is not None for path in (arguments.weights, arguments.annotations, arguments.splits, arguments.fill)):
        raise InputError(
            f"--resume: {arguments.run_folder} goes on with its own weights, annotations, splits and labels; leave "
            "--weights, --annotations, --splits and --fill out"
        )
    if given := _given(arguments, *_RECORDED):
        options = ", ".join(map(option_of, given))
        raise InputError(
            f"--resume: {arguments.run_folder} goes on under its own settings; leave {options} out, or train a new run"
        )
    return Run.open(arguments.run_folder, arguments.store)


def _refuse_other_settings(run: Any, arguments: argparse.Namespace) -> None:
    """Refuse a command that cannot be the one that has started the run."""
    asked = TrainConfig.from_options(_given(arguments, *_RECORDED))
    asked = replace(asked, crop_size=asked.crop_size or run.config.crop_size)
    own, wanted = ({**vars(config.model), **vars(config)} for config in (run.config, asked))
    if others := [name for name in _given(arguments, *_RECORDED) if own[name] != wanted[name]]:
        options = ", ".join(map(option_of, others))
        raise InputError(
            f"{run.path}: has been started with other settings ({options}); go on with --resume alone, or give a new "
            "folder"
        )
