"""The run folder: everything that is needed to repeat, resume, evaluate and export a training."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from smile_fast.data.annotations import Declarations, read_annotations, write_annotations
from smile_fast.data.folder_lock import reading
from smile_fast.data.splits import SplitsFile, drawn_fold
from smile_fast.data.store import Store
from smile_fast.models import Segmenter
from smile_fast.training.checkpoint import Checkpoint
from smile_fast.training.config import TrainConfig
from smile_fast.training.new_folder import is_unused, new_folder, remove_folder
from smile_fast.training.rounds import open_round
from smile_fast.training.run_record import (
    CONFIG,
    CONFIG_SCHEMA,
    RunRecord,
    Splits,
    StartWeights,
    environment,
    is_run,
    read_config,
    read_environment,
    write_config,
    write_environment,
)
from smile_fast.training.view import TrainingView
from smile_runtime.errors import InputError
from smile_runtime.io.files import atomic_path, reason, sha256
from smile_runtime.volume.pixel_size import PixelSpace

_SPLITS = ("train", "validation", "test")


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
    def previous_path(self) -> Path:
        """The checkpoint before that one, for a disk that spoils it."""
        return self.path / "checkpoint.previous.safetensors"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a training can go on from one of the two."""
        return self.checkpoint_path.exists() or self.previous_path.exists()

    @property
    def has_learned(self) -> bool:
        """Whether a step of the training has left something: a run in which none has can be made again."""
        if self.model_path.exists() or self.previous_path.exists():
            return True
        if self.metrics_path.exists() and self.metrics_path.stat().st_size:
            return True
        return self.checkpoint_path.exists() and Checkpoint.load(self.checkpoint_path).state.get("total_steps") != 0

    @property
    def model_path(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    def round_weights_path(self, number: int) -> Path:
        """The weights that a round began with, where they are kept."""
        return self.path / f"round-{number}.safetensors"

    @property
    def weight_files(self) -> list[Path]:
        """Those files of checkpoints, kept weights of rounds and final weights that are there."""
        own = (self.checkpoint_path, self.previous_path, self.model_path)
        return [*(path for path in own if path.exists()), *sorted(self.path.glob("round-*.safetensors"))]

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def rounds_path(self) -> Path:
        """One folder per relabelling round."""
        return self.path / "rounds"

    @property
    def fill_path(self) -> Path:
        """The labels that missing organs were filled with before the first step, where they were; see `fill`."""
        return self.path / "fill"

    @classmethod
    def create(
        cls,
        path: Path,
        config: TrainConfig,
        store: Store,
        declarations: Declarations,
        device: str = "cpu",
        begin: Callable[["Run"], object] = lambda run: None,
        splits_file: SplitsFile | None = None,
    ) -> "Run":
        """Make the folder of a new run with what is known before the first step; it appears as a whole or not at all.

        Args:
            path: the folder, not there yet or empty.
            config: settings.
            store: the cohort.
            declarations: state of every (case, organ).
            device: where the training will be.
            begin: called with the run in its temporary folder: what it writes there appears with the rest.
            splits_file: which cases are trained on; None for the splits of the store.

        Raises:
            InputError: if the folder already holds something, cannot be written, or is written by another process; or
                what `begin` raises.
        """
        _refuse_used(path)
        splits = split_cases(store, config, splits_file)
        config = config.of_cohort(store.organs, [store.cases[case].spacing for case in splits["train"]])
        config = replace(config, crop_size=config.crop_size or _whole_slice(store, splits["train"], config))
        sources = {case: store.cases[case].sources for cases in splits.values() for case in cases}
        run = cls(path, config, store.path, splits, sources, store)
        record = RunRecord(
            CONFIG_SCHEMA,
            str(store.path.resolve()),
            config.to_json(),
            asdict(run.pixel_space),
            Splits(**splits),
            sources,
        )
        folder = path
        try:
            with new_folder(path, CONFIG) as folder:
                write_annotations(folder / "annotations.csv", declarations, list(store.cases), store.organs)
                write_environment(folder, environment(device))
                write_config(folder, record)
                begin(replace(run, path=folder))
        except InputError as error:  # of a folder that nobody has seen
            raise InputError(str(error).replace(str(folder), str(path))) from None
        return run

    def record_weights(self, path: Path) -> None:
        """Write into config.json which start weights were loaded: without them the run cannot be repeated."""
        # Files of runs all have one of two names: their folder tells them apart.
        name = f"{path.resolve().parent.name}/{path.name}" if Checkpoint.is_one(path) else path.name
        write_config(self.path, replace(read_config(self.path), weights=StartWeights(name, sha256(path))))

    def record_execution(self, execution: dict[str, Any]) -> None:
        """Write into environment.json how the run is executed now; a resumed one may be executed in another way."""
        record = read_environment(self.path) or environment()
        write_environment(self.path, replace(record, execution=execution))

    def discard(self) -> None:
        """Remove a run that was just made and has trained nothing: it would only stand in the way of the next try.

        Whoever calls holds its lock: it is nobody else's.
        """
        remove_folder(self.path, CONFIG)

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
        path = Path(path)
        if not (path / CONFIG).exists():
            raise InputError(f"{path}: not a run folder, it has no {CONFIG}; name one that a training wrote")
        record = read_config(path)
        try:
            config = TrainConfig.from_json(record.settings)
            if not config.model.organs:
                raise InputError("settings: the network has no organs; train again")
        except InputError as error:
            raise InputError(f"{path / CONFIG}: {error}") from None
        return cls(path, config, Path(record.store), vars(record.splits), record.sources)

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

    def first_view(self) -> TrainingView:
        """What the training on human labels sees: with what missing organs were filled with, if they were."""
        human = self.view("train")
        if not (self.fill_path / "0").is_dir():
            return human
        filled = open_round(self.fill_path, 0)
        return TrainingView(self.store, human.declarations, human.cases, filled, self.config.body)

    def cases(self, split: str) -> list[str]:
        """Names of the cases of "train", "validation" or "test"."""
        return self.splits[split]

    def load_checkpoint(self) -> tuple[Checkpoint, Path]:
        """The last checkpoint that is whole, and its file; a warning tells of a damaged one.

        Raises:
            InputError: there is none.
        """
        checkpoint, path = Checkpoint.load_newest(self.checkpoint_path, self.previous_path)
        if path != self.checkpoint_path:
            print(
                f"warning: {self.checkpoint_path}: damaged or missing; the training goes on from the one before, "
                f"{path.name}",
                file=sys.stderr,
            )
        return checkpoint, path

    def make_newest(self, path: Path) -> None:
        """Go on from a checkpoint: it takes the name of a damaged one that was saved after it, and keeps its own.

        Raises:
            InputError: the folder cannot be written.
        """
        if path != self.checkpoint_path:
            with atomic_path(self.checkpoint_path) as temporary:
                shutil.copyfile(path, temporary)

    def load_model(self, before_round: int | None = None) -> Segmenter:
        """The trained network in evaluation mode, on the CPU.

        Args:
            before_round: as it was at the start of this round, which `keep_rounds` keeps; None for the final one.

        Raises:
            InputError: if training has not finished, or the file is damaged or of another network.
        """
        path = self.model_path if before_round is None else self.round_weights_path(before_round)
        if not self.model_path.exists() and self.has_checkpoint:
            raise InputError(f"{self.path}: the run has not finished training; go on with --resume first")
        model = Segmenter(self.config.model)
        load_model_state(model, Checkpoint.load(path), path)
        return model.eval()


@contextmanager
def opened(path: Path, store: Path | Store | None = None) -> Iterator[Run]:
    """Open a run to work with it: until the block ends no `prepare` removes a file of its store.

    Args:
        path: its folder.
        store: see `Run.open`.

    Raises:
        InputError: see `Run.open`; or a `prepare` has the store for itself now.
    """
    where = store.path if isinstance(store, Store) else store or Run.open(path).store_path
    with reading(where):
        yield Run.open(path, store)


def _refuse_used(path: Path) -> None:
    try:
        if path.exists() and (not path.is_dir() or not is_unused(path, CONFIG)):
            run = is_run(path)
            held = "holds a run already" if run else "already exists and is not empty"
            raise InputError(f"{path}: {held}; give a new folder{', or --resume to go on in it' if run else ''}")
    except OSError as error:
        raise InputError(f"{path}: the run folder cannot be made ({reason(error)}); give another one") from None


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


def _whole_slice(store: Store, cases: list[str], config: TrainConfig) -> int:
    """Pixels of the network that hold the largest body box, at most 512."""
    largest = 1
    for case in cases:
        stride = config.model.scan_stride(store.cases[case].spacing)
        size = max(store.body_box(case, config.body).size)
        largest = max(largest, -(-size * config.model.output_stride // stride))
    return min(512, -(-largest // 32) * 32)
