"""What an organ costs: 3, 13 and 64 of the same synthetic organs on the same images, in CPU seconds.

The cohort has 64 organs; a smaller one leaves out the labels of all but the first. Whatever is measured is measured
for every number of organs in turn, several times; figures are medians. A classifier of random weights is shifted until
it calls every organ on one pixel in fifty: else relabelling and scores of an untrained network have nothing to do.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from nibabel import load
from torch import Tensor

from smile_fast.data.annotations import read_annotations, write_annotations
from smile_fast.data.dataset import RawDataset
from smile_fast.data.prepare import prepare
from smile_fast.data.store import Store
from smile_fast.evaluation import evaluate_run
from smile_fast.exporter import Targets, export_run
from smile_fast.models import Segmenter
from smile_fast.ops import masked_bce_upsampled
from smile_fast.supervision.states import State
from smile_fast.supervision.tables import build_tables
from smile_fast.training.batches import BatchSource
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.one_batch import steps_on_one_batch
from smile_fast.training.relabel import relabel
from smile_fast.training.rounds import Round
from smile_fast.training.run import Run
from smile_runtime.io.files import read_json, write_json
from smile_runtime.io.nifti import write_labels
from smile_runtime.volume.preprocessing import slice_context

COUNTS = (3, 13, 64)
REPETITIONS = 4
PHANTOM = ("--train", "6", "--test", "2", "--size", "112", "--slices", "20", "--workers", "1")
SETTINGS = {"backbone": "resnet18", "width": 16, "rates": [3, 6, 9], "batch_size": 8, "crop_size": 96, "epochs": 2.0}
OPTIONS = "--backbone resnet18 --width 16 --rates 3 6 9 --batch-size 8 --crop-size 96 --epochs 1 --device cpu".split()
_CALLED = 0.02  # share of pixels that the shifted classifier calls each organ
_LOSSES = 20  # in one measurement of the loss
_CPU = torch.device("cpu")

Command = Callable[..., dict[str, float]]
Times = dict[str, list[float]]
Key = TypeVar("Key", int, str)


def measure_costs(out: Path, run_command: Command) -> dict[str, dict[str, float]]:
    """Make the cohorts and measure; number of organs -> what is measured -> median.

    Args:
        out: new folder.
        run_command: runs `smile-fast` and says its peak memory.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True)
    run_command("phantom", out / "whole", "--synthetic-organs", COUNTS[-1], *PHANTOM)
    for count in COUNTS:
        first_organs(out / "whole", out / f"cohort-{count}", count)
    times: dict[int, Times] = {count: {} for count in COUNTS}
    in_turns({n: partial(_prepare, out, n) for n in COUNTS}, times)
    sizes = {n: {"store, bytes": _bytes(out / f"store-{n}")} for n in COUNTS}
    runs = {n: untrained_run(out / f"run-{n}", Store.open(out / f"store-{n}")) for n in COUNTS}
    for measured in (_steps, _losses, _relabel, _evaluate, _export):
        in_turns({n: measured(run) for n, run in runs.items()}, times)
    for count, size in sizes.items():
        size["model, bytes"] = (runs[count].path / "model.onnx").stat().st_size
        trained = run_command("train", out / f"store-{count}", out / f"trained-{count}", *OPTIONS)
        size["train, peak MB"] = trained["peak MB"]
    medians = {n: {name: float(statistics.median(each)) for name, each in own.items()} for n, own in times.items()}
    return {str(n): medians[n] | sizes[n] for n in COUNTS}


def first_organs(whole: Path, out: Path, count: int) -> None:
    """The same cohort with its first organs alone; in every other training case half of them are hidden."""
    dataset = RawDataset.open(whole)
    organs = dataset.organs[:count]
    for case in dataset.cases:
        for path in (case.image, case.label):
            (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(case.image, out / case.image.parent.name / case.image.name)
        file = load(case.label)
        labels = np.asarray(file.dataobj)
        kept = np.where(labels <= count, labels, 0).astype(np.uint8)
        write_labels(out / case.label.parent.name / case.label.name, kept, file.affine, organs=organs)
    description = read_json(whole / "dataset.json", "measure again")
    description["labels"] = {name: value for name, value in description["labels"].items() if value <= count}
    write_json(out / "dataset.json", description)
    names = dataset.names()
    states = read_annotations(whole / "annotations.csv", names, dataset.organs)
    training = dataset.names("train")
    declared = {
        name: {
            organ: State.HIDDEN if name in training and (number + k) % 2 else states[name][organ]
            for k, organ in enumerate(organs)
        }
        for number, name in enumerate(names)
    }
    write_annotations(out / "annotations.csv", declared, names, organs)


def in_turns(measured: Mapping[Key, Callable[[], Mapping[str, float]]], times: Mapping[Key, Times]) -> None:
    """Measure what is given, once to warm up and then in turns, and add it to times."""
    for repetition in range(REPETITIONS + 1):
        for count, take in measured.items():
            for name, seconds in take().items():
                if repetition:
                    times[count].setdefault(name, []).append(seconds)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _prepare(out: Path, count: int) -> dict[str, float]:
    store = out / f"store-{count}"
    shutil.rmtree(store, ignore_errors=True)
    dataset = RawDataset.open(out / f"cohort-{count}")
    taken = cpu_seconds(lambda: prepare(dataset, store, workers=1, report=str, note=str))
    return {"prepare, s a case": taken / len(dataset.cases)}


def untrained_run(path: Path, store: Store) -> Run:
    """A run whose network has random weights, the same for any number of organs but for its last layer."""
    run = Run.create(path, TrainConfig.from_options(SETTINGS), store, store.declarations())
    torch.manual_seed(0)
    model = Segmenter(run.config.model).eval()
    case = next(iter(store.cases))
    hu = slice_context(store.read_image(case), range(store.cases[case].shape[0]), run.config.model.channels)
    with torch.no_grad():
        found = model(torch.from_numpy(hu)).transpose(0, 1).flatten(1)  # [K, pixels]
        model.classifier[-1].bias -= found.quantile(1 - _CALLED, dim=1)
    Checkpoint({"model": dict(model.state_dict())}).save(run.model_path)
    return run


def _steps(run: Run) -> Callable[[], dict[str, float]]:
    step = steps_on_one_batch(run, _CPU)
    return lambda: {"training step, s": cpu_seconds(step)}


def _losses(run: Run) -> Callable[[], dict[str, float]]:
    """Loss and gradient for the logits of a batch, on a crop's labels."""
    view = run.view("train")
    batch = BatchSource.of(run.config, view, 0).batch(0)
    labels = torch.from_numpy(batch.labels.copy())  # [B, H, W]
    table = build_tables([list(state.values()) for state in list(run.declarations().values())[: len(labels)]], "smile")
    low = -(-labels.shape[-1] // 8)
    logits = torch.randn(len(labels), len(run.organs), low, low, requires_grad=True)
    tables = table[torch.arange(len(labels)) % len(table)]

    def gradient() -> Tensor:
        return torch.autograd.grad(masked_bce_upsampled(logits, labels, tables), logits)[0]

    return lambda: {"loss, s": cpu_seconds(lambda: [gradient() for _ in range(_LOSSES)]) / _LOSSES}


def _relabel(run: Run) -> Callable[[], dict[str, float]]:
    model, view = run.load_model(), run.view("train")

    def once() -> dict[str, float]:
        rounds = run.path / "measured"
        shutil.rmtree(rounds, ignore_errors=True)
        taken = cpu_seconds(lambda: relabel(model, view, rounds, Round(1, 0.5, "volume")))
        return {"relabel, s a case": taken / len(view.cases)}

    return once


def _evaluate(run: Run) -> Callable[[], dict[str, float]]:
    cases = len(run.splits["test"])
    return lambda: {"evaluate, s a case": cpu_seconds(lambda: evaluate_run(run, workers=1)) / cases}


def _export(run: Run) -> Callable[[], dict[str, float]]:
    return lambda: {"export, s": cpu_seconds(lambda: export_run(run, Targets(run.path / "model.onnx")))}


def _bytes(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
