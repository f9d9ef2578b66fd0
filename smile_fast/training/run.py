"""The run folder: everything that is needed to repeat, resume, evaluate and export a training."""

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from smile_fast import __version__
from smile_fast.data.annotations import Declarations, read_annotations, write_annotations
from smile_fast.data.folder_lock import LOCK, locked
from smile_fast.data.splits import SplitsFile, drawn_fold
from smile_fast.data.store import Store
from smile_fast.models import Segmenter
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.rounds import open_round
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.io.files import read_json, reason, sha256, write_json
from smile_runtime.volume.pixel_size import PixelSpace

_SCHEMA = 3
_REMEDY = "train again, or restore it from a copy"
_SPLITS = ("train", "validation", "test")
_PACKAGES = ("torch", "numpy", "blosc2", "nibabel", "safetensors", "smile-fast", "smile-fast-runtime")


@dataclass(frozen=True)
class Run:
    """One training run on disk.

    Attributes:
        path: its folder. config: the settings of the training and of the network.
        store_path: where the cohort is that it was trained on. splits: case names by "train", "validation", "test".
        sources: SHA-256 of the files that each case of the splits was made from.
    """

    path: Path
    config: TrainConfig
    store_path: Path
    splits: dict[str, list[str]]
    sources: dict[str, Any]
    _opened: Store | None = field(default=None, repr=False, compare=False)  # where it had to be opened before the run

    @property
    def organs(self) -> tuple[str, ...]:
        """K organ names, in the order of their label values 1..K."""
        return self.config.model.organs

    @property
    def checkpoint_path(self) -> Path:
        """Where training leaves off and goes on."""
        return self.path / "checkpoint.safetensors"

    @property
    def model_path(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def rounds_path(self) -> Path:
        """One folder per relabelling round."""
        return self.path / "rounds"

    @classmethod
    def create(
        cls,
        path: Path,
        config: TrainConfig,
        store: Store,
        declarations: Declarations,
        device: str = "cpu",
        splits_file: SplitsFile | None = None,
    ) -> "Run":
        """Make the folder of a new run and write what is known before the first step.

        Raises:
            InputError: if the folder already holds something, cannot be written, or is written by another process.
        """
        _refuse_used(path)
        splits = split_cases(store, config, splits_file)
        config = config.of_cohort(store.organs, [store.cases[case].spacing for case in splits["train"]])
        config = replace(config, crop_size=config.crop_size or _whole_slice(store, splits["train"], config))
        sources = {case: store.cases[case].sources for cases in splits.values() for case in cases}
        run = cls(path, config, store.path, splits, sources, store)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: the run folder cannot be made ({reason(error)}); give another one") from None
        record = {
            "schema": _SCHEMA,
            "store": str(store.path.resolve()),
            "settings": run.config.to_json(),
            "pixels": asdict(run.pixel_space),
            "splits": splits,
            "sources": sources,
            "weights": None,
        }
        with locked(path):
            _refuse_used(path)  # it may have been, since it was looked at
            try:
                write_annotations(path / "annotations.csv", declarations, list(store.cases), store.organs)
                write_json(path / "environment.json", environment(device))
                write_json(path / "config.json", record)
            except InputError:
                run.discard()
                raise
        return run

    def record_weights(self, path: Path) -> None:
        """Write into config.json which start weights were loaded: without them the run cannot be repeated."""
        file = self.path / "config.json"
        record = read_json(file, _REMEDY)
        # Files of runs all have one of two names: their folder tells them apart.
        name = f"{path.resolve().parent.name}/{path.name}" if Checkpoint.is_one(path) else path.name
        record["weights"] = {"file": name, "sha256": sha256(path)}
        write_json(file, record)

    def record_execution(self, execution: dict[str, Any]) -> None:
        """Write into environment.json how the run is executed now; a resumed one may be executed in another way."""
        file = self.path / "environment.json"
        record = read_json(file, _REMEDY) if file.exists() else environment()
        write_json(file, {**record, "execution": execution})

    def discard(self) -> None:
        """Remove a run that was just made and has trained nothing: it would only stand in the way of the next try."""
        shutil.rmtree(self.path, ignore_errors=True)

    @classmethod
    def open(cls, path: Path, store: Path | Store | None = None) -> "Run":
        """Open an existing run.

        Args:
            path: its folder.
            store: where its store is now, if not where it was when the run was made, or that store. The record stays as
                it is.

        Raises:
            InputError: if there is none, or its config.json is damaged or of another version; or `store` is none, or
                that of another cohort.
        """
        run = cls._read(path)
        if store is None:
            return run
        if isinstance(store, Path) and not store.is_dir():
            raise InputError(f"{store}: there is no store here; say with --store where that of the run {path} is now")
        opened = Store.open(store.resolve()) if isinstance(store, Path) else store
        moved = replace(run, store_path=opened.path, _opened=opened)
        _ = moved.store  # it may be any store: by the organs, the cases and the files it was made from it is the run's
        return moved

    @classmethod
    def _read(cls, path: Path) -> "Run":
        file = Path(path) / "config.json"
        if not file.exists():
            raise InputError(f"{path}: not a run folder, it has no {file.name}; name one that a training wrote")
        record = read_json(file, _REMEDY)
        try:
            if record["schema"] != _SCHEMA:
                raise InputError(
                    f"schema: the run has {record['schema']}, this version reads {_SCHEMA}; "
                    "train again, or use the smile-fast that made it"
                )
            config = TrainConfig.from_json(record["settings"])
            if not config.model.organs:
                raise InputError("settings: the network has no organs; train again")
            return cls(
                Path(path),
                config,
                Path(record["store"]),
                {name: list(record["splits"][name]) for name in _SPLITS},
                dict(record["sources"]),
            )
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: damaged ({error!r}); train again, or restore it from a copy") from None

    @cached_property
    def store(self) -> Store:
        """The cohort that the run was trained on; its index is read once.

        Raises:
            InputError: if it is not there any more, has other organs or fewer cases than the run, or was made from
                other files.
        """
        if not self.store_path.is_dir():
            raise InputError(
                f"{self.store_path}: the store of the run {self.path} is not there now; if it was moved, say where it "
                "is with --store"
            )
        store = self._opened or Store.open(self.store_path)
        if store.organs != self.organs:
            raise InputError(
                f"{store.path}: the store has the organs {', '.join(store.organs)}, the run {self.path} was trained "
                f"for {', '.join(self.organs)}; bring the run's own store back"
            )
        lost = [case for cases in self.splits.values() for case in cases if case not in store.cases]
        if lost:
            raise InputError(
                f"{store.path}: the store lacks {len(lost)} cases of the run {self.path}, the first is {lost[0]}; "
                "bring the run's own store back"
            )
        other = [case for case, files in self.sources.items() if store.cases[case].sources != files]
        if other:
            raise InputError(
                f"{store.path}: the store was made from other files than the run {self.path} was trained on, "
                f"{len(other)} cases differ, the first is {other[0]}; bring the old files back, or train again"
            )
        return store

    @property
    def pixel_space(self) -> PixelSpace:
        """Which pixels the network sees, and the range of those of its training cases."""
        spacings = [self.store.cases[case].spacing for case in self.splits["train"]]
        model = self.config.model
        return PixelSpace.of(model.pixel_mm, model.output_stride, spacings, self.config.scale)

    def unlike_training(self, cases: Sequence[str]) -> dict[str, list[str]]:
        """Sentence -> cases whose pixels or slice distances are further from the training's than augmentation goes."""
        space, found = self.pixel_space, dict[str, list[str]]()
        for case in cases:
            for sentence in space.warnings(self.store.cases[case].spacing, self.config.model.channels):
                found.setdefault(sentence, []).append(case)
        return found

    def declarations(self) -> Declarations:
        """State of every (case, organ) that the run was trained under."""
        cases = [case for split in _SPLITS for case in self.splits[split]]
        return read_annotations(self.path / "annotations.csv", cases, self.organs, others=True)

    def view(self, split: str, round_number: int = 0) -> TrainingView:
        """What training may see of a split.

        Args:
            split: "train", "validation" or "test".
            round_number: 0 for human labels alone, t for those and the pseudo-labels of round t.

        Raises:
            InputError: see `store`; or there is no such round, or its description is damaged.
        """
        overlay = open_round(self.rounds_path, round_number) if round_number else None
        return TrainingView(self.store, self.declarations(), self.cases(split), overlay, self.config.body)

    def cases(self, split: str) -> list[str]:
        """Names of the cases of "train", "validation" or "test"."""
        return self.splits[split]

    def load_model(self) -> Segmenter:
        """The trained network in evaluation mode, on the CPU.

        Raises:
            InputError: if training has not finished, or the file is damaged or of another network.
        """
        if not self.model_path.exists() and self.checkpoint_path.exists():
            raise InputError(f"{self.path}: the run has not finished training; go on with --resume first")
        model = Segmenter(self.config.model)
        load_model_state(model, Checkpoint.load(self.model_path), self.model_path)
        return model.eval()


def _refuse_used(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(entry.name != LOCK for entry in path.iterdir())):
        raise InputError(f"{path}: already exists and is not empty; give a new folder, or --resume to go on in it")


def load_model_state(model: Segmenter, checkpoint: Checkpoint, path: Path) -> None:
    """Copy a checkpoint's weights into a network; an InputError says what does not fit."""
    try:
        model.load_state_dict(checkpoint.tensors.get("model", {}))
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1:2]).strip() or str(error)
        raise InputError(
            f"{path}: does not hold the weights of this network ({first[:200]}); restore it from a copy, or train again"
        ) from None


def split_cases(store: Store, config: TrainConfig, file: SplitsFile | None = None) -> dict[str, list[str]]:
    """Case names by "train", "validation" and "test": drawn as `drawn_fold` does, or as a file says."""
    if file is not None:
        return file.split({name: info.split for name, info in store.cases.items()}, config.folds, config.fold)
    train = sorted(name for name, info in store.cases.items() if info.split == "train")
    test = sorted(name for name, info in store.cases.items() if info.split == "test")
    validation: list[str] = []
    if config.folds:
        if config.folds > len(train):
            raise InputError(
                f"{store.path}: {config.folds} folds need at least as many training cases, the store has {len(train)}; "
                "ask for fewer folds"
            )
        validation = drawn_fold(train, config.folds, config.fold, patients={})
        train = [name for name in train if name not in validation]
    if not train:
        raise InputError(f"{store.path}: the store has no training case; prepare a dataset that has some")
    return {"train": train, "validation": validation, "test": test}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions and machine, for the record; `device` is where the work is done."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "smile_fast": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": packages,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def _whole_slice(store: Store, cases: list[str], config: TrainConfig) -> int:
    """Pixels of the network that hold the largest body box, at most 512."""
    largest = 1
    for case in cases:
        stride = config.model.scan_stride(store.cases[case].spacing)
        size = max(store.body_box(case, config.body).size)
        largest = max(largest, -(-size * config.model.output_stride // stride))
    return min(512, -(-largest // 32) * 32)
