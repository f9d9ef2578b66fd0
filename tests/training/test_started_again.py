"""A training that is started again: by whom, with what, and what is refused."""

import shutil

import pytest
import torch

from smile_fast.cli.main import main
from smile_fast.training.loop import Trainer, train
from smile_fast.training.run import Run
from smile_runtime.errors import InputError
from tests.training.test_resume import assert_same_outcome
from tests.trainings import CPU, CURRICULUM, interrupted, metrics, new_run, steps_of, trained

COMMAND = "--backbone resnet18 --width 8 --rates 1 --crop-size 32 --batch-size 2 --epochs 0.5 --lr 0.002 --device cpu"


def started(store, path, *options):
    return main(["train", str(store.path), str(path), *COMMAND.split(), *options])


def test_a_round_that_is_gone_is_not_made_by_other_weights(store, smiler, tmp_path):
    """Those at its start are gone after its first step."""
    run = new_run(tmp_path / "run", store, **CURRICULUM)
    interrupted(run, 10)
    shutil.move(run.rounds_path / "1", tmp_path / "kept")
    with pytest.raises(InputError, match=r"rounds/1: the training stopped in the middle .*; restore the folder"):
        train(Run.open(run.path), resume=True, device=CPU)
    shutil.move(tmp_path / "kept", run.rounds_path / "1")
    train(Run.open(run.path), resume=True, device=CPU)
    assert_same_outcome(run, smiler)


@pytest.mark.parametrize("how", ["option", "torchrun"])
def test_one_command_starts_a_run_and_goes_on_with_it(store, tmp_path, monkeypatch, capsys, how):
    options = ["--resume-if-started"] if how == "option" else []
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0" if how == "option" else "1")
    settings = {"epochs": 0.5}
    expected = trained(tmp_path / "expected", store, **settings)
    run = new_run(tmp_path / "run", store, **settings)
    interrupted(run, 2)
    assert started(store, run.path, *options) == 0
    assert_same_outcome(run, expected)
    assert started(store, tmp_path / "new", *options) == 0
    assert metrics(Run.open(tmp_path / "new")) == metrics(expected)
    assert started(store, run.path, *options, "--epochs", "0.7", "--seed", "3") == 2
    assert "has been started with other settings (--epochs, --seed)" in capsys.readouterr().err


def test_without_being_asked_nothing_is_gone_on_with(store, tmp_path, capsys):
    run = new_run(tmp_path / "run", store, epochs=0.5)
    interrupted(run, 2)
    assert started(store, run.path) == 2
    assert "holds a run already; give a new folder, or --resume" in capsys.readouterr().err
    assert steps_of(run) == 2


def test_statistics_that_nobody_brings_cannot_be_frozen(store, tmp_path, capsys):
    assert started(store, tmp_path / "run", "--batch-norm", "frozen") == 2
    assert "--batch-norm: frozen keeps statistics that only --weights brings" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
    ids=["GPU", "host", "Python"],
)
def test_too_little_memory_is_one_sentence(store, tmp_path, monkeypatch, capsys, error):
    def step(self, *arguments):
        raise error

    monkeypatch.setattr(Trainer, "step", step)
    assert started(store, tmp_path / "run") == 2
    assert "has not enough memory for this training; train with a smaller --batch-size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_error_stays_what_it_is(store, tmp_path, monkeypatch):
    def step(self, *arguments):
        raise RuntimeError("something else")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(RuntimeError, match="something else"):
        started(store, tmp_path / "run")
