"""What a run folder says of itself, config.json and environment.json, and how both are read again."""

import importlib.metadata
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from smile_fast import __version__
from smile_fast.records import read_record, write_record

CONFIG, ENVIRONMENT = "config.json", "environment.json"
CONFIG_SCHEMA: Literal[4] = 4
_ENVIRONMENT_SCHEMA: Literal[1] = 1
_REMEDY = "restore it from a copy, train again, or use the smile-fast that made it"
_PACKAGES = ("torch", "numpy", "blosc2", "nibabel", "safetensors", "smile-fast", "smile-fast-runtime")


@dataclass(frozen=True)
class Splits:
    """Names of the cases of a run."""

    train: list[str]
    validation: list[str]
    test: list[str]


@dataclass(frozen=True)
class StartWeights:
    """Which file a training started from, and its SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class RunRecord:
    """config.json: what the run is; `--resume` goes on under it.

    Attributes:
        store: where the cohort was. settings: of the training and of the network, see `TrainConfig.to_json`.
        pixels: what the network sees, for the reader. splits: the cases.
        sources: SHA-256 of the files that each case of the splits was made from.
        weights: what the training started from; None for random weights.
    """

    schema: Literal[4]
    store: str
    settings: dict[str, Any]
    pixels: dict[str, Any]
    splits: Splits
    sources: dict[str, dict[str, Any]]
    weights: StartWeights | None = None

    def __post_init__(self) -> None:
        """Refuse a record whose parts contradict each other."""
        cases = [case for split in vars(self.splits).values() for case in split]
        if not self.store or "\0" in self.store:
            raise ValueError("its store has no name")
        if not self.splits.train:
            raise ValueError("it names no training case")
        if len(set(cases)) != len(cases):
            raise ValueError("it names a case twice")
        if set(cases) != set(self.sources):
            raise ValueError("its sources are not those of its cases")


@dataclass(frozen=True)
class Environment:
    """environment.json: versions and machine, for the record.

    Attributes:
        smile_fast, python, platform, packages: versions. threads: of torch. device: where the run was made.
        execution: how it was trained last.
    """

    schema: Literal[1]
    smile_fast: str
    python: str
    platform: str
    packages: dict[str, str]
    threads: int
    device: str
    execution: dict[str, Any] = field(default_factory=dict)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: config.json is the last file of it that appears."""
    return (folder / CONFIG).exists()


def write_config(folder: Path, record: RunRecord) -> None:
    """Write config.json into a run folder."""
    write_record(folder / CONFIG, asdict(record))


def read_config(folder: Path) -> RunRecord:
    """Read config.json of a run folder.

    Raises:
        InputError: it is missing, damaged, or of another version.
    """
    return read_record(folder / CONFIG, RunRecord, CONFIG_SCHEMA, _REMEDY)


def write_environment(folder: Path, record: Environment) -> None:
    """Write environment.json into a run folder."""
    write_record(folder / ENVIRONMENT, asdict(record))


def read_environment(folder: Path) -> Environment | None:
    """Read environment.json of a run folder; None if there is none: nothing depends on it.

    Raises:
        InputError: it is damaged.
    """
    file = folder / ENVIRONMENT
    if not file.exists():
        return None
    return read_record(file, Environment, _ENVIRONMENT_SCHEMA, "restore it from a copy, or remove it")


def environment(device: str = "cpu") -> Environment:
    """Versions and machine now; `device` is where the work is done."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return Environment(
        schema=_ENVIRONMENT_SCHEMA,
        smile_fast=__version__,
        python=sys.version.split()[0],
        platform=platform.platform(),
        packages=packages,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    )
