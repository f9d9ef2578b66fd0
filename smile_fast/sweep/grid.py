"""Which cells a sweep has, and what each of them is made of."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smile_fast import __version__
from smile_fast.data.annotations import Declarations
from smile_fast.data.dataset import Split
from smile_fast.data.simulate import simulate_missing
from smile_fast.data.splits import SplitsFile
from smile_fast.data.store import Store
from smile_fast.training.config import TrainConfig
from smile_fast.training.presets import PRESETS, Preset
from smile_runtime.errors import InputError

CELLS = "cells"
ROUNDS_ONLY = ("method", "rounds", "gamma_max", "scope", "round_share", "pseudo_negative", "keep_rounds", "brakes")
"""Settings that decide nothing in a training without rounds."""
_HELD_OUT = 0.2  # the paper's random 80/20 splits


@dataclass(frozen=True)
class Cell:
    """One training of a sweep; `alpha` is the share of annotations that are hidden."""

    method: str
    alpha: float
    fold: int

    def __str__(self) -> str:
        return f"{self.method}, alpha {self.alpha:.2f}, fold {self.fold}"

    @property
    def folder(self) -> str:
        """Where its run is, in the folder of the sweep."""
        return f"{CELLS}/{self.method}/alpha-{self.alpha:.2f}/fold-{self.fold}"


def cells_of(methods: Sequence[str], alphas: Sequence[float], folds: int) -> list[Cell]:
    """All cells: a fold with all of its methods after the other, so that what is there early can be compared.

    Raises:
        InputError: a method is not known, an alpha is no share or has more than two digits, or there is no fold.
    """
    if unknown := [method for method in methods if method not in PRESETS]:
        raise InputError(f"--methods: {unknown[0]!r} is not known; give some of {', '.join(PRESETS)}")
    for alpha in alphas:
        if not 0 <= alpha < 1 or round(alpha, 2) != alpha:
            raise InputError(f"--alphas: {alpha} cannot be used; give shares from 0 to 0.99 of two digits at most")
    if folds < 1:
        raise InputError(f"--folds: {folds} cannot be used; give 1 or more")
    unique = list(dict.fromkeys(methods)), sorted(set(alphas))
    return [Cell(method, alpha, fold) for fold in range(folds) for alpha in unique[1] for method in unique[0]]


@dataclass(frozen=True)
class _DrawnSplit(SplitsFile):
    """The split of a fold in the place of a file: it alone may train on what the dataset holds out."""

    def split(self, cases: Mapping[str, Split], folds: int, fold: int) -> dict[str, list[str]]:
        """The cases of each part, sorted."""
        return {
            part: sorted(c for c, p in self.folds[0].items() if p == part) for part in ("train", "validation", "test")
        }


def draw_split(store: Store, fold: int, seed: int, file: SplitsFile | None = None) -> SplitsFile:
    """Which cases a fold trains on, and which it holds out: a random fifth of all patients, or what a file says.

    Args:
        store: the cohort; its own training and test cases are pooled.
        fold: which one.
        seed: of the sweep.
        file: says the parts, or the patients alone; of nnU-Net's list the validation cases of a fold are held out.

    Raises:
        InputError: the file does not fit, or there are too few cases.
    """
    patients = {} if file is None else file.patients
    if file is not None and file.is_list:
        if fold >= len(file.folds):
            raise InputError(f"--folds: {file.path} holds {len(file.folds)} of them; give no more")
        parts = file.split({name: case.split for name, case in store.cases.items()}, len(file.folds), fold)
        parts = {"train": parts["train"], "validation": [], "test": parts["validation"]}
    elif file is not None and file.folds[0]:
        parts = file.split({name: case.split for name, case in store.cases.items()}, 0, 0)
    else:
        groups = sorted({patients.get(case, case) for case in store.cases})
        order = np.random.default_rng([seed, fold]).permutation(groups).tolist()
        held_out = set(order[: max(1, round(_HELD_OUT * len(groups)))])
        parts = {"train": [], "validation": [], "test": []}
        for case in sorted(store.cases):
            parts["test" if patients.get(case, case) in held_out else "train"].append(case)
    if not parts["train"] or not parts["test"]:
        raise InputError(f"{store.path}: a fold has no case to train on, or none to score; give a store of more cases")
    return _DrawnSplit(Path("drawn"), ({c: part for part, cases in parts.items() for c in cases},), False, {})


@dataclass(frozen=True)
class Sweep:
    """What all cells of a sweep share.

    Attributes:
        store: the cohort. out: folder of the sweep.
        options: settings of all trainings, the same for every method.
        seed: of splits, of what is hidden, and of the trainings; each fold has its own.
        surfaces: score NSD and HD95, too.
        splits: which cases are held out, None for random fifths.
        as_declared: train on what the store declares, e.g. what each source drew, and hide nothing beside it.
        presets: methods by name.
    """

    store: Store
    out: Path
    options: Mapping[str, Any]
    seed: int = 0
    surfaces: bool = False
    splits: SplitsFile | None = None
    as_declared: bool = False
    presets: Mapping[str, Preset] = field(default_factory=lambda: PRESETS)
    _drawn: dict[int, SplitsFile] = field(default_factory=dict, repr=False, compare=False)

    def path(self, cell: Cell) -> Path:
        """Folder of the run of a cell."""
        return self.out / cell.folder

    def config(self, cell: Cell) -> TrainConfig:
        """Settings of a cell's training."""
        return self.presets[cell.method].config({**self.options, "seed": self.seed + cell.fold})

    def split(self, cell: Cell) -> SplitsFile:
        """The cases of a cell: the same for all methods and shares of a fold."""
        if cell.fold not in self._drawn:
            self._drawn[cell.fold] = draw_split(self.store, cell.fold, self.seed, self.splits)
        return self._drawn[cell.fold]

    def declarations(self, cell: Cell) -> Declarations:
        """The store's, with a share hidden in the training cases: the same for all methods of a share and a fold."""
        if self.as_declared and not self.presets[cell.method].all_annotations:
            return self.store.declarations()
        training = [case for case, part in self.split(cell).folds[0].items() if part == "train"]
        alpha = 0.0 if self.presets[cell.method].all_annotations else cell.alpha
        return simulate_missing(self.store.declarations(), alpha, self.seed + cell.fold, training)

    def plan(self, cell: Cell) -> str:
        """Digest of all that decides a cell's result; what only rounds are set by does not, where there are none."""
        config = self.config(cell)
        unused = () if config.last_round else ROUNDS_ONLY
        settings = {name: value for name, value in config.to_json().items() if name not in unused}
        digest = self._of_cohort.copy()
        plan = {
            "cell": asdict(cell),
            "split": self.split(cell).folds[0],
            "method": config.method,
            "settings": settings,
            "seed": self.seed,
            "surfaces": self.surfaces,
            "declared": self.as_declared,
            "version": __version__,
        }
        digest.update(f", {_json(plan)[1:]}".encode())
        return digest.hexdigest()

    @cached_property
    def _of_cohort(self) -> "hashlib._Hash":
        """The begin of every plan, a JSON object: a cohort may be large, and each look at a cell asks for its plan."""
        cases = {name: asdict(case) for name, case in self.store.cases.items()}
        return hashlib.sha256(f'{{"cases": {_json(cases)}'.encode())


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
