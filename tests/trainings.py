"""Trainings of a few steps on small stores, and bit-for-bit comparisons of what they leave behind."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile_fast.data.store import Store
from smile_fast.supervision import State
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.execution import DEFAULT_EXECUTION, Execution
from smile_fast.training.interrupt import Interrupted
from smile_fast.training.loop import train
from smile_fast.training.metrics import MetricsLog, read_metrics
from smile_fast.training.run import Run
from smile_fast.training.weights import start_from
from tests.runs import make_store, truth

CPU = torch.device("cpu")
# Four cases, three of them for training: 18 slices, 9 steps an epoch.
STATES = {
    ("train_0", "pancreas"): State.HIDDEN,
    ("train_1", "liver"): State.MISSING,
    ("train_2", "liver"): State.HIDDEN,
    ("train_2", "pancreas"): State.HIDDEN,
}
TINY = {"backbone": "resnet18", "width": 8, "crop_size": 32, "batch_size": 2, "epochs": 1.0, "rates": [1], "lr": 0.002}
# 9 + 4 + 4 steps; at this learning rate even such a short training finds some organ voxels to take as pseudo-labels.
CURRICULUM = {"method": "smiler", "rounds": 2, "round_share": 0.4, "ema": 0.9, "optimizer": "sgd", "lr": 0.3}


def tiny_store(path: Path, states: Mapping[tuple[str, str], State] = STATES) -> Store:
    """Three training cases and a held-out one; what is missing is not drawn, what is hidden is."""
    labels = {case: truth() for case in ("train_0", "train_1", "train_2", "test_0")}
    for (case, organ), state in states.items():
        if state in (State.MISSING, State.ABSENT):
            value = 1 + ("liver", "pancreas").index(organ)
            labels[case] = np.where(labels[case] == value, 0, labels[case]).astype(np.uint8)
    return make_store(path, labels, states)


def new_run(path: Path, store: Store, weights: Path | None = None, **settings: object) -> Run:
    config = TrainConfig.from_options({**TINY, **settings})

    def begin(run: Run) -> None:
        if weights is not None:
            start_from(run, weights)

    return Run.create(path, config, store, store.declarations(), begin=begin)


def trained(path: Path, store: Store, **settings: object) -> Run:
    run = new_run(path, store, **settings)
    train(run, device=CPU)
    return run


def steps_of(run: Run) -> int:
    return int(Checkpoint.load(run.checkpoint_path).state["total_steps"])


def weights(run: Run) -> dict[str, Tensor]:
    """The final weights."""
    return Checkpoint.load(run.model_path).tensors["model"]


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Equal as bytes: -0 is not 0 here, and a NaN equals itself."""
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].shape == other[name].shape
        bits, other_bits = (tensor.reshape(-1).view(torch.uint8) for tensor in (one[name], other[name]))
        assert torch.equal(bits, other_bits), f"{name} differs"


def differs(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


def metrics(run: Run) -> list[dict[str, Any]]:
    """What was logged, without the times."""
    return [
        {name: value for name, value in line.items() if name not in ("seconds", "steps_per_second")}
        for line in read_metrics(run)
    ]


def overlays(run: Run) -> dict[str, bytes]:
    """Every file of every round."""
    return {
        str(file.relative_to(run.rounds_path)): file.read_bytes()
        for file in sorted(run.rounds_path.rglob("*"))
        if file.is_file()
    }


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal when the given step of the training is done (counted over all rounds)."""
    add, done = MetricsLog.add, 0

    def counted(self: MetricsLog, *arguments: Any) -> None:
        nonlocal done
        add(self, *arguments)
        done += 1
        if done == step:
            assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler), "nothing catches it"
            signal.raise_signal(number)

    monkeypatch.setattr(MetricsLog, "add", counted)


def interrupted(run: Run, step: int, *, resume: bool = False, execution: Execution = DEFAULT_EXECUTION) -> None:
    """Train until a signal arrives after a number of steps."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            train(run, resume=resume, device=CPU, execution=execution)


def scramble_hidden(path: Path, store: Store, seed: int = 0) -> Store:
    """Copy a store and write anything where hidden organs are or could be: no other human label changes."""
    rng = np.random.default_rng(seed)
    labels: dict[str, NDArray[np.uint8]] = {}
    for case, info in store.cases.items():
        label = store.read_labels(case).copy()
        hidden = [k for k, organ in enumerate(store.organs, start=1) if info.states[organ] is State.HIDDEN]
        free = np.isin(label, [0, *hidden])
        label[free] = rng.choice([0, *hidden], free.sum())
        labels[case] = label
    states = {(case, organ): state for case, info in store.cases.items() for organ, state in info.states.items()}
    return make_store(path, labels, states, store.organs)
