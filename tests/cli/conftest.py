"""Folders with a store and runs to be spoiled, one copy a test."""

import shutil

import pytest
import torch

from tests.cli.spoiling import edit_json
from tests.trainings import interrupted, new_run, tiny_store, trained

RUNS = ("run", "baseline", "stopped")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """store; three runs on it: run (smiler, trained), baseline (trained), stopped (at its second step)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("template") / "work"
    store = tiny_store(folder / "store")
    trained(folder / "run", store, method="smiler", epochs=0.2, rounds=1)
    trained(folder / "baseline", store, method="baseline", epochs=0.2)
    interrupted(new_run(folder / "stopped", store, ema=0.9), 2)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def work(template, tmp_path, monkeypatch, one_thread):
    """A copy of the template to spoil, and the current folder."""
    copy = tmp_path / "work"
    shutil.copytree(template, copy)
    for run in RUNS:
        edit_json(copy / run / "config.json", lambda record: record.update(store=str(copy / "store")))
    monkeypatch.chdir(copy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return copy
