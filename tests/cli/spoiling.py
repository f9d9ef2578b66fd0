"""Mistakes to make in folders of runs and stores: a table's rows, and what all of them must end in."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smile_fast.cli.main import main
from smile_fast.records import write_record
from tests.cohorts import tree
from tests.runs import make_store, truth

Spoil = Callable[[], object]


@dataclass
class Bad:
    """One mistake: the command, what its message must name, and what is done to the folders before.

    Commands and paths are relative to a folder that holds `store` and three runs on it: `run` (smiler, trained),
    `baseline` (trained) and `stopped` (at its second step).
    """

    name: str
    command: str
    message: str
    spoil: Spoil = lambda: None


def edit_json(path: str | Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file; a sealed one is sealed again."""
    record = json.loads(Path(path).read_text())
    sealed = record.pop("sha256", None)
    change(record)
    if sealed:  # as if it had been written so
        write_record(path, record)
    else:
        Path(path).write_text(json.dumps(record))


def edited(path: str, change: Callable[[Any], object]) -> Spoil:
    return lambda: edit_json(path, change)


def config(change: Callable[[Any], object]) -> Spoil:
    return edited("run/config.json", change)


def index(change: Callable[[Any], object]) -> Spoil:
    return edited("store/index.json", change)


def cut(*paths: str, keep: int = 300) -> Spoil:
    def spoil() -> None:
        for path in (path for pattern in paths for path in Path().glob(pattern)):
            path.write_bytes(path.read_bytes()[:keep])

    return spoil


def copy(source: str, target: str) -> Spoil:
    return lambda: shutil.copy(source, target)


def removed(*paths: str) -> Spoil:
    return lambda: [path.unlink() for pattern in paths for path in Path().glob(pattern)]


def write(path: str, content: bytes = b"hello, world\n") -> Spoil:
    return lambda: Path(path).write_bytes(content)


def foreign(path: str, name: str = "conv1.weight", value: float = 1.0) -> Spoil:
    """A safetensors file, but of somebody else."""
    return lambda: save_file({name: torch.full((8,), value)}, path)


def annotations(old: str, new: str) -> Spoil:
    """other.csv: the run's annotations with a change."""
    return lambda: Path("other.csv").write_text(Path("run/annotations.csv").read_text().replace(old, new, 1))


def other_organs() -> None:
    """The store was prepared again from a dataset with a third organ."""
    shutil.rmtree("store")
    labels = {case: truth() for case in ("train_0", "train_1", "train_2", "test_0")}
    make_store(Path("store").resolve(), labels, organs=("liver", "pancreas", "spleen"))


def assert_refused(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, one line that says why, and not a byte changed in the current folder; a lock may be left."""
    before, folders = tree(Path()), {path for path in Path().rglob("*") if path.is_dir()}
    assert main(command) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in out + err
    assert len(errors[0]) < 600
    assert tree(Path()) == before
    assert {path for path in Path().rglob("*") if path.is_dir()} == folders
